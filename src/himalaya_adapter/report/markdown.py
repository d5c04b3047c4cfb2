"""The tables of a comparison as Markdown, to paste into a paper's notes or a pull request."""

from collections.abc import Sequence

from himalaya_adapter.report.metric_table import format_interval, format_value, metric_rows
from himalaya_adapter.report.run_folder import Cell, RunRecord
from himalaya_adapter.report.style import run_styles

LEGEND = (
    "a_{i,j} is the score on task j after training through task i of T; a_{0,j} is the frozen model. Brackets are "
    "95 % intervals over test items. Bold is best; ★ means that its interval overlaps no other run's. Read forgetting "
    "together with learning accuracy: who learns nothing forgets nothing."
)


def tables(runs: Sequence[RunRecord]) -> str:
    """The headline table with formulas, then a table of every task's score before, after learning and now."""
    first = runs[0]
    labels = [look.label for look in run_styles(runs)]
    headline = [
        [
            row.metric.title,
            *(
                " ".join(
                    part
                    for part in (f"**{entry.text}**" if entry.best else entry.text, "★" * entry.clear, entry.interval)
                    if part
                )
                for entry in row.entries
            ),
            row.metric.formula,
        ]
        for row in metric_rows(runs)
    ]
    by_task = [
        [
            str(index + 1),
            task,
            first.final[index]["metric"],
            str(first.final[index]["n"]),
            _with_interval(first.before[index]),
            *(_with_interval(cell) for run in runs for cell in (run.after_learning[index], run.final[index])),
        ]
        for index, task in enumerate(first.tasks)
    ]
    task_header = ["#", "task", "metric", "n", "frozen"]
    task_header += [f"{label}, {when}" for label in labels for when in ("learnt", "now")]
    title = f"{first.metrics['stream']} on {first.metrics['backbone']}, {len(first.tasks)} tasks"
    return "\n".join(
        [
            f"# {_escape(title)}",
            "",
            *_table(["metric", *labels, "formula"], headline),
            "",
            LEGEND,
            "",
            "## Task by task",
            "",
            *_table(task_header, by_task),
            "",
        ]
    )


def _with_interval(cell: Cell) -> str:
    return f"{format_value(cell['score'], 'score')} {format_interval((cell['low'], cell['high']))}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(_escape(text) for text in line) + " |" for line in lines]


def _escape(text: str) -> str:
    """Keep a name from ending its cell or being read as HTML."""
    return text.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")
