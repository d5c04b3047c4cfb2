"""Writes the generated tables of docs/deployment.md from measurements: ``python docs/generate_latency.py``."""

from pathlib import Path

from himalaya_adapter.deploy import latency_tables as tables
from himalaya_adapter.storage import read_json

PAGE = Path(__file__).with_name("deployment.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "latency"
END = "<!-- end -->"


def names() -> list[str]:
    """The measurements, each a section of the page."""
    return sorted(path.stem for path in RESULTS.glob("*.json"))


def start(name: str) -> str:
    """The line above a measurement's tables."""
    return f"<!-- generated: latency {name} -->\n"


def written(name: str) -> str:
    """A measurement's tables as they stand in the page."""
    return PAGE.read_text(encoding="utf-8").split(start(name))[1].split(END)[0]


def generated(name: str) -> str:
    """A measurement's tables: overheads, and where the time of the last graph goes in decoding."""
    result = read_json(RESULTS / f"{name}.json")
    shown = [entry for entry in result["measurements"] if (entry["phase"], entry["precision"]) == ("decode", "fp32")]
    parts = [
        f"{result['subject']}. Measured on: {tables.device_line(result)}.\n",
        tables.markdown(tables.OVERHEAD_HEADER, tables.overhead_rows(result)),
        f"Where the time goes in decoding, graph `{result['graphs'][-1]}`:\n",
        tables.markdown(
            tables.OPERATOR_HEADER, tables.operator_rows(result | {"measurements": shown}, result["graphs"][-1])
        ),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    for section in names():
        before, rest = PAGE.read_text(encoding="utf-8").split(start(section))
        PAGE.write_text(before + start(section) + generated(section) + END + rest.split(END, 1)[1], encoding="utf-8")
