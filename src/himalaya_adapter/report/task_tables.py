"""The tables of every task's scores: before training, right after learning, and at the end."""

from collections.abc import Sequence

from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.metric_table import format_interval, format_value
from himalaya_adapter.report.run_folder import Cell
from himalaya_adapter.report.table import Table, Text, has_seeds, whiskers_legend

TWO = 2  # methods up to which the change of every task has room
LEGEND = "Learnt: right after training on the task. Now: after the last task. "


def task_scores(groups: Sequence[MethodGroup]) -> Table:
    """Every task before, after learning and now, for a few methods."""
    first = groups[0].first
    header = [Text("task", words=True), Text("metric", words=True), Text("n"), Text("frozen")]
    parts = ("learnt", "now", "change") if len(groups) <= TWO else ("learnt", "now")
    cells = [(group.after_learning, group.final) for group in groups]
    rows = []
    for index, task in enumerate(first.tasks):
        row = [*_task_name(groups, index, task), _score(first.before[index])]
        for number, (learnt, final) in enumerate(cells):
            change = Text(format_value(final[index]["score"] - learnt[index]["score"], "signed"), method=number)
            varies = len(groups[number].runs) > 1
            both = [_score(learnt[index], number, varies), _score(final[index], number, varies)]
            row += [*both, change][: len(parts)]
        rows.append(tuple(row))
    header += [Text(group.label, part, method=index) for index, group in enumerate(groups) for part in parts]
    return Table("tasks", "Task by task", tuple(header), tuple(rows), LEGEND + whiskers_legend(groups).strip())


def task_scores_of_many(groups: Sequence[MethodGroup]) -> list[Table]:
    """Every task now, and every task after learning, a column per method."""
    first = groups[0].first
    tables = []
    for topic, title, cells in (
        ("tasks", "Task by task, after the last task", [group.final for group in groups]),
        ("tasks_learnt", "Task by task, right after learning", [group.after_learning for group in groups]),
    ):
        header = [Text("task", words=True), Text("metric", words=True), Text("n"), Text("frozen")]
        header += [Text(group.label, method=index) for index, group in enumerate(groups)]
        rows = []
        for index, task in enumerate(first.tasks):
            scores = [of_method[index]["score"] for of_method in cells]
            best = max((one for one, group in zip(scores, groups, strict=True) if not group.is_bound), default=None)
            rows.append(
                (
                    *_task_name(groups, index, task),
                    Text(format_value(first.before[index]["score"], "score")),
                    *(
                        Text(
                            format_value(of_method[index]["score"], "score"),
                            _deviation(of_method[index]) if len(groups[number].runs) > 1 else "",
                            bold=of_method[index]["score"] == best and not groups[number].is_bound,
                        )
                        for number, of_method in enumerate(cells)
                    ),
                )
            )
        legend = "Bold is best. ± is the standard deviation over seeds." if has_seeds(groups) else "Bold is best."
        tables.append(Table(topic, title, tuple(header), tuple(rows), legend, folded=True))
    return tables


def _task_name(groups: Sequence[MethodGroup], index: int, task: str) -> list[Text]:
    cell = groups[0].first.final[index]
    return [Text(f"{index + 1}. {task}", words=True), Text(cell["metric"], words=True), Text(str(cell["n"]))]


def _score(cell: Cell, method: int | None = None, varies: bool = False) -> Text:
    small = _deviation(cell) if varies else format_interval((cell["low"], cell["high"]))
    return Text(format_value(cell["score"], "score"), small, method=method)


def _deviation(cell: Cell) -> str:
    return f"± {format_value((cell['high'] - cell['low']) / 2, 'score')}"
