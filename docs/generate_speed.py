"""Writes the table of docs/deployment.md "Speed in PyTorch" from the committed measurements.

Run: python docs/generate_speed.py, after benchmarks/throughput.py has written benchmarks/results/speed/*.json.
"""

from pathlib import Path
from typing import Any

from himalaya_adapter.storage import read_json

PAGE = Path(__file__).with_name("deployment.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "speed"
START, END = "<!-- generated: speed -->\n", "<!-- end: speed -->"
KINDS = {"decode": "decode, batch 1", "prefill": "prefill, batch 1", "training": "training step"}
HIMALAYA, WEIGHTS, LORA = "HIMALAYA", "HIMALAYA in the weights", "LoRA r=8"
COLUMNS = (
    *("device", "work", "precision", "torch.compile", "bare, ms a token"),
    *("LoRA / bare", "HIMALAYA / bare", "HIMALAYA in the weights / bare"),
)


def written() -> str:
    """The table as it stands in the page."""
    return PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]


def generated() -> str:
    """The table as the measurements have it, a row for each kind of work in each file."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for path in sorted(RESULTS.glob("*.json")):
        measured = read_json(path)
        lines += [f"| {' | '.join(_cells(measured, kind))} |" for kind in KINDS if kind in measured["kinds"]]
    return "\n".join(lines) + "\n"


def _cells(measured: dict[str, Any], kind: str) -> list[str]:
    machine, works = measured["machine"], measured["kinds"][kind]
    rows, columns = measured["training_batch"]
    training = kind == "training"
    return [
        machine["accelerator"] or f"{machine['cpu']}, threads: {machine['threads']}",
        f"{KINDS[kind]}, {rows} × {columns} tokens" if training else KINDS[kind],
        measured["dtype"],
        "yes" if measured["compiled"] else "no",
        f"{works['bare']['milliseconds_per_token']:.3g}",
        *(_ratio(works[name]["to_bare"]) for name in (LORA, HIMALAYA, WEIGHTS)),
    ]


def _ratio(quartiles: list[Any]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(before + START + generated() + END + rest.split(END, 1)[1], encoding="utf-8")
