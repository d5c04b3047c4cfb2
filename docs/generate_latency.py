"""The page of measured latencies: latency-tables.md of the site, from the committed measurements."""

from pathlib import Path
from typing import Any

from himalaya_adapter.deploy.bundle.runner.latency import BASE
from himalaya_adapter.storage import read_json

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "latency"
ABOUT = """\
# Latency in ONNX Runtime

The whole `smollm2-135m`, and one layer of Llama-2-7B with random weights, with HIMALAYA (graph *adapted*) and without.
*base again* is the graph without the adapter, opened twice: its overhead is the error of the measurement.
[Deployment](deployment.md) says how `himalaya latency` measures.
"""
HEADER = ["weights", "step", "graph", "ms", "overhead", "95 % interval"]


def page() -> str:
    """The overheads of each measurement."""
    return "\n".join([ABOUT, *map(_section, sorted(RESULTS.glob("*.json")))])


def _section(path: Path) -> str:
    result = read_json(path)
    device = ", ".join(f"{name} {value}" for name, value in result["device"].items())
    rows = [row for entry in result["measurements"] for row in _rows(entry)]
    table = "".join("| " + " | ".join(row) + " |\n" for row in [HEADER, ["---"] * len(HEADER), *rows])
    return f"## {path.stem}\n\n{result['subject']}. Measured on: {device}.\n\n{table}"


def _rows(entry: dict[str, Any]) -> list[list[str]]:
    """A row for each graph: its median time, and how much longer it takes than the graph without the adapter."""
    step, rows = f"{entry['phase']}: {entry['tokens']} after {entry['past']}, {entry['threads']} threads", []
    for name, graph in entry["graphs"].items():
        overhead = ["", ""]
        if name != BASE:
            low, high = graph["interval"]
            overhead = [_percent(graph["ratio"]), f"{_percent(low)} to {_percent(high)}"]
        rows.append([entry["precision"], step, name, f"{graph['milliseconds']:.2f}", *overhead])
    return rows


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.2f} %"
