"""The report of the demo: what each method still knows after each task, as a picture and answers."""

from pathlib import Path

from himalaya_adapter.learning.demo import DemoResult
from himalaya_adapter.report.charts import XY, Axis, Series, figure
from himalaya_adapter.report.page import Page
from himalaya_adapter.report.palette import part_looks
from himalaya_adapter.report.table import Table, table, words


def write_demo_report(result: DemoResult, folder: Path) -> Path:
    """Write ``report.html``; returns its path."""
    methods = part_looks([*result.tasks, *result.after])[len(result.tasks) :]  # in none of the tasks' colours
    page = Page(
        kind="Demo",
        title="Demo: three tasks, one after another",
        names=methods,
        facts=[("Tasks", ", ".join(result.tasks))],
        parts=[figure("demo_scores", *_charts(result)), _answers(result)],
    )
    return page.write(folder)


def _charts(result: DemoResult) -> list[XY]:
    x = Axis("tasks learnt", scale="names", names=("none", *result.tasks))
    y, looks = Axis("score", "score", low=0, high=1), part_looks(list(result.tasks))
    charts = []
    for method, rows in result.after.items():
        after = [result.frozen, *rows]
        series = [
            Series(look, [(step, after[step][task]) for step in (0, *range(place, len(after)))], line=True)
            for place, (task, look) in enumerate(zip(result.tasks, looks, strict=True), start=1)
        ]
        charts.append(XY(series, x, y, method))
    return charts


def _answers(result: DemoResult) -> Table:
    told = zip(*result.answers.values(), strict=True)
    rows = [(item.prompt, item.target, *given) for item, given in zip(result.questions, told, strict=True)]
    return table("demo_answers", words("question", "right", *result.answers), rows)
