"""What the documentation says was measured is what the committed results say."""

from pathlib import Path

from himalaya_adapter.report.comparison import compare
from himalaya_adapter.report.expected_results import expected_results
from himalaya_adapter.report.markdown import tables
from himalaya_adapter.report.run_folder import read_comparable_runs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- generated: demo -->\n", "<!-- end -->"


def test_the_demo_table_is_generated_from_the_committed_runs() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    written = page.split(START)[1].split(END)[0]
    comparison = compare(read_comparable_runs(RESULTS / "demo", ["himalaya", "lora"]))
    generated = tables(comparison, expected_results(comparison))
    below_the_page_title = generated.split("\n", 1)[1].replace("\n## ", "\n### ")
    assert written.strip() == below_the_page_title.strip()
