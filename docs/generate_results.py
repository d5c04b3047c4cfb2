"""Writes the generated tables of docs/results.md from the committed runs: ``python docs/generate_results.py``."""

from pathlib import Path

from himalaya_adapter.report.comparison import compare
from himalaya_adapter.report.expected_results import expected_results
from himalaya_adapter.report.markdown import tables
from himalaya_adapter.report.run_folder import read_comparable_runs
from himalaya_adapter.storage import read_json

PAGE = Path(__file__).with_name("results.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# Section of the page and folder of the results -> its runs, in the order in which they are shown.
SECTIONS = {
    "demo": ["himalaya", "lora"],
    "package25": ["himalaya-package25", "lora-ewc-package25", "frozen"],
    "rivals": ["himalaya", "lora", "lora-ewc", "lilac", "coltas", "glodis", "loreft", "olora", "frozen"],
}
SEARCHES = RESULTS / "rivals_search"  # trials.json of each search, named after its run
END = "<!-- end -->"


def start(section: str) -> str:
    """The line above a section's tables."""
    return f"<!-- generated: {section} -->\n"


def written(section: str) -> str:
    """A section's tables as they stand in the page."""
    return PAGE.read_text(encoding="utf-8").split(start(section))[1].split(END)[0]


def generated(section: str) -> str:
    """A section's tables as the committed runs have them; headings are one level lower than on a page of their own."""
    if section == SEARCHES.name:
        return searches()
    comparison = compare(read_comparable_runs(RESULTS / section, SECTIONS[section]))
    below_the_title = tables(comparison, expected_results(comparison)).split("\n", 1)[1]
    return f"{below_the_title.strip()}\n".replace("\n## ", "\n### ")


def searches() -> str:
    """What every trial of the searches reached, the best in bold."""
    lines = ["| method | learning rate: retained-accuracy AUC on validation items |", "|---|---|"]
    for path in sorted(SEARCHES.glob("*.json")):
        search = read_json(path)
        trials = sorted(search["trials"], key=lambda trial: trial["parameters"]["learning_rate"])
        words = [f"{trial['parameters']['learning_rate']:g}: {trial['value']:.3f}" for trial in trials]
        best = [
            f"**{word}**" if t["number"] == search["best"] else word for t, word in zip(trials, words, strict=True)
        ]
        lines.append(f"| {search['method_name']} | {', '.join(best)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in (*SECTIONS, SEARCHES.name):
        before, rest = PAGE.read_text(encoding="utf-8").split(start(name))
        PAGE.write_text(before + start(name) + generated(name) + END + rest.split(END, 1)[1], encoding="utf-8")
