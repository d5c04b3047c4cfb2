"""What the documentation says was measured is what the committed results say."""

from pathlib import Path

from himalaya_adapter.report.markdown import tables
from himalaya_adapter.report.run_folder import read_comparable_runs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- generated: demo -->\n", "<!-- end -->"


def test_the_demo_table_is_generated_from_the_committed_runs() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    written = page.split(START)[1].split(END)[0]
    generated = tables(read_comparable_runs(RESULTS / "demo", ["himalaya", "lora"]))
    below_the_page_title = generated.split("\n", 1)[1].replace("## Task by task", "### Task by task")
    assert written.strip() == below_the_page_title.strip()
