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
DTYPES = ("float32", "bfloat16")
HIMALAYA, LORA = "HIMALAYA", "LoRA r=8"
COLUMNS = ("work", "precision", "bare, ms a token", "LoRA / bare", "HIMALAYA / bare", "HIMALAYA / LoRA")
BEFORE = "HIMALAYA / bare, before"


def written() -> str:
    """The table as it stands in the page."""
    return PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]


def generated() -> str:
    """The table as the measurements have it."""
    columns = (*COLUMNS, BEFORE)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for kind, title in KINDS.items():
        for dtype in DTYPES:
            now, before = (read_json(RESULTS / f"{when}_{dtype}.json")["kinds"][kind] for when in ("after", "before"))
            bare = f"{now['bare']['milliseconds_per_token']:.1f}"
            ratios = [now[LORA]["to_bare"], now[HIMALAYA]["to_bare"], now[HIMALAYA]["to_lora"]]
            cells = [title, dtype, bare, *map(_ratio, [*ratios, before[HIMALAYA]["to_bare"]])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratio(quartiles: list[Any]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(before + START + generated() + END + rest.split(END, 1)[1], encoding="utf-8")
