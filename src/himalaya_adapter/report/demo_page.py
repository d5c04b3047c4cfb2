"""The report of the demo: what each method still knows after each task, as a picture, a table and answers."""

from pathlib import Path

from matplotlib.figure import Figure

from himalaya_adapter.learning.demo import DemoResult
from himalaya_adapter.report.html import picture, render
from himalaya_adapter.report.sections import Section
from himalaya_adapter.report.style import FROZEN_COLOR, FULL_WIDTH, MARKERS, PART_COLORS
from himalaya_adapter.storage import write_atomic

READING = (
    "One line a task: its score on items that were held out, from the time when it was learnt. A line that falls is "
    "being forgotten; a small mark at the left is the frozen model."
)


def write_demo_report(result: DemoResult, folder: Path) -> Path:
    """Write ``report.html`` and its figure as PNG and PDF; returns the page's path."""
    section = Section("scores", "What is still known", READING, _figure(result))
    page = render("demo.html.j2", result=result, picture=picture(section, folder / "figures", "demo"))
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


def _figure(result: DemoResult) -> Figure:
    figure = Figure(figsize=(FULL_WIDTH, 3.2), layout="constrained")
    places = figure.subplots(1, len(result.after), sharey=True)
    steps = range(1, len(result.tasks) + 1)
    for axes, (method, rows) in zip(places, result.after.items(), strict=True):
        for number, task in enumerate(result.tasks):
            scores = [row[task] for row in rows[number:]]
            look = {"color": PART_COLORS[number], "marker": MARKERS[number], "label": task}
            axes.plot(steps[number:], scores, **look)
            axes.plot([0], [result.frozen[task]], color=PART_COLORS[number], marker="_", linestyle="none")
        axes.axvline(0.5, color=FROZEN_COLOR, linewidth=0.5)
        axes.set_xticks([0, *steps], ["frozen", *result.tasks], fontsize=7)
        axes.set_title(method)
        axes.set_ylim(-0.02, 1.02)
    places[0].set_ylabel("score")
    places[0].legend(fontsize=7, frameon=False)
    return figure
