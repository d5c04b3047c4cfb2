"""The tables of a comparison, the same for the page, for Markdown and for LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass

from himalaya_adapter.report.comparison import Comparison, Difference
from himalaya_adapter.report.expected_results import ExpectedResult
from himalaya_adapter.report.method_groups import MethodGroup, alone
from himalaya_adapter.report.metric_table import (
    HEADLINE,
    MANY_METHODS,
    METRICS,
    Entry,
    Row,
    format_interval,
    format_p,
    format_value,
    metric_rows,
)
from himalaya_adapter.report.run_folder import Cell

MATRIX_LEGEND = "a_{i,j} is the score on task j after training through task i of T; a_{0,j} is the frozen model."
READ_TOGETHER = "Read forgetting together with learning accuracy: who learns nothing forgets nothing."
TWO = 2  # methods up to which the change of every task has room
ARROWS = {"higher": " ↑", "lower": " ↓", "near zero": " → 0"}


@dataclass(frozen=True)
class Text:
    """One cell of a table.

    Attributes:
        text: What it says.
        small: An interval or a p-value beside it.
        bold: The best of a row, or a significant difference.
        clear: The best, and its interval overlaps no other's.
        warning: Something that is not as it should be.
        method: Position of the method that it names or belongs to, for its colour.
        words: Words and not a number.
    """

    text: str
    small: str = ""
    bold: bool = False
    clear: bool = False
    warning: bool = False
    method: int | None = None
    words: bool = False


@dataclass(frozen=True)
class Table:
    """A table: ``topic`` names it in files, ``legend`` says how it is read; the first cell of a row is its name."""

    topic: str
    title: str
    header: tuple[Text, ...]
    rows: tuple[tuple[Text, ...], ...]
    legend: str


def comparison_tables(
    comparison: Comparison, expected: Sequence[ExpectedResult], *, by_method: bool | None = None
) -> list[Table]:
    """All tables, those without content left out.

    Args:
        comparison: The methods and their tests.
        expected: The source's claims with their verdicts.
        by_method: The metrics as columns and a line per method; without it, for five methods or more.
    """
    groups = comparison.groups
    if by_method is None:
        by_method = len(groups) >= MANY_METHODS
    rows = metric_rows(groups)
    first = [_by_method(groups, rows, headline=True), _by_method(groups, rows, headline=False)]
    tables = [
        *(first if by_method else [_by_metric(groups, rows)]),
        _seeds(groups),
        _measure_differences(comparison),
        *([_task_scores(groups)] if len(groups) < MANY_METHODS else _task_scores_of_many(groups)),
        _task_differences(comparison),
        _expected(expected),
    ]
    return [table for table in tables if table.rows]


def _marks(groups: Sequence[MethodGroup]) -> str:
    legend = "Bold is best; ★ means that its interval overlaps no other's. " if len(groups) > 1 else ""
    if any(len(group.runs) > 1 for group in groups):
        legend += "± is the standard deviation over seeds, of a norm the largest is shown. "
    if any(len(group.runs) == 1 for group in groups):
        legend += "Brackets are 95 % intervals over test items. "
    return legend


def _entry(entry: Entry) -> Text:
    text = f"{entry.text} above the bound" if entry.exceeds_bound else entry.text
    return Text(text, entry.interval, bold=entry.best, clear=entry.clear, warning=entry.exceeds_bound)


def _methods(groups: Sequence[MethodGroup]) -> list[Text]:
    """Method names with their runs or the number of their seeds."""
    return [Text(group.label, _runs(group), method=index) for index, group in enumerate(groups)]


def _runs(group: MethodGroup) -> str:
    return f"{len(group.runs)} seeds" if len(group.runs) > 1 else f"seed {group.seeds[0]}"


def _by_metric(groups: Sequence[MethodGroup], rows: Sequence[Row]) -> Table:
    return Table(
        topic="headline",
        title="Metrics",
        header=(Text("metric", words=True), *_methods(groups), Text("formula", words=True)),
        rows=tuple(
            (
                Text(row.metric.title, words=True),
                *(_entry(entry) for entry in row.entries),
                Text(row.metric.formula, words=True),
            )
            for row in rows
        ),
        legend=f"{MATRIX_LEGEND} {_marks(groups)}{READ_TOGETHER}",
    )


def _by_method(groups: Sequence[MethodGroup], rows: Sequence[Row], *, headline: bool) -> Table:
    chosen = [row for row in rows if (row.metric.key in HEADLINE) == headline]
    formulas = "; ".join(f"{row.metric.title}: {row.metric.formula}" for row in chosen)
    return Table(
        topic="headline" if headline else "further_metrics",
        title="Metrics" if headline else "Further metrics",
        header=(
            Text("method", words=True),
            *(
                Text(row.metric.title + (ARROWS[row.metric.better] if row.metric.bound is None else ""))
                for row in chosen
            ),
        ),
        rows=tuple(
            (
                Text(group.label, _runs(group), method=index, words=True),
                *(_entry(row.entries[index]) for row in chosen),
            )
            for index, group in enumerate(groups)
        ),
        legend=(f"{MATRIX_LEGEND} {_marks(groups)}{READ_TOGETHER} " if headline else "") + f"{formulas}.",
    )


def _seeds(groups: Sequence[MethodGroup]) -> Table:
    """Every seed's numbers, where a method has several."""
    singles = [(index, alone(run)) for index, group in enumerate(groups) for run in group.runs]
    chosen = [row for row in metric_rows([single for _, single in singles]) if row.metric.key in HEADLINE]
    several = len(singles) > len(groups)
    return Table(
        topic="seeds",
        title="Seed by seed",
        header=(Text("run", words=True), Text("seed"), *(Text(row.metric.title) for row in chosen)),
        rows=tuple(
            (
                Text(single.first.run_id, groups[index].label, method=index, words=True),
                Text(str(single.seeds[0])),
                *(Text(row.entries[number].text, row.entries[number].interval) for row in chosen),
            )
            for number, (index, single) in enumerate(singles)
        )
        if several
        else (),
        legend="Brackets are 95 % intervals over test items.",
    )


def _task_scores(groups: Sequence[MethodGroup]) -> Table:
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
    return Table("tasks", "Task by task", tuple(header), tuple(rows), _TASK_LEGEND + _marks(groups).strip())


_TASK_LEGEND = "Learnt: right after training on the task. Now: after the last task. "


def _task_scores_of_many(groups: Sequence[MethodGroup]) -> list[Table]:
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
            best = max(of_method[index]["score"] for of_method in cells)
            rows.append(
                (
                    *_task_name(groups, index, task),
                    Text(format_value(first.before[index]["score"], "score")),
                    *(
                        Text(
                            format_value(of_method[index]["score"], "score"),
                            _deviation(of_method[index]) if len(groups[number].runs) > 1 else "",
                            bold=of_method[index]["score"] == best,
                        )
                        for number, of_method in enumerate(cells)
                    ),
                )
            )
        legend = "Bold is best. ± is the standard deviation over seeds." if _several(groups) else "Bold is best."
        tables.append(Table(topic, title, tuple(header), tuple(rows), legend))
    return tables


def _several(groups: Sequence[MethodGroup]) -> bool:
    return any(len(group.runs) > 1 for group in groups)


def _task_name(groups: Sequence[MethodGroup], index: int, task: str) -> list[Text]:
    cell = groups[0].first.final[index]
    return [Text(f"{index + 1}. {task}", words=True), Text(cell["metric"], words=True), Text(str(cell["n"]))]


def _score(cell: Cell, method: int | None = None, varies: bool = False) -> Text:
    small = _deviation(cell) if varies else format_interval((cell["low"], cell["high"]))
    return Text(format_value(cell["score"], "score"), small, method=method)


def _deviation(cell: Cell) -> str:
    return f"± {format_value((cell['high'] - cell['low']) / 2, 'score')}"


def _measure_differences(comparison: Comparison) -> Table:
    tested = {difference.of for difference in comparison.measures}
    measures = [metric for metric in METRICS if metric.key in tested]
    return Table(
        topic="paired_differences",
        title="Paired differences",
        header=(
            Text(f"{comparison.reference.label} minus", words=True),
            Text("seeds"),
            *(Text(metric.title + ARROWS[metric.better]) for metric in measures),
        ),
        rows=tuple(
            (
                Text(other.label, method=_position(comparison, other), words=True),
                Text(_pairing(comparison, other)),
                *(_difference(comparison.difference(other, metric.key)) for metric in measures),
            )
            for other in comparison.others
        ),
        legend="Differences on the same test items with 95 % intervals and two-sided p-values by paired bootstrap "
        "over the items; p after Holm's correction over this table, bold at most 0.05. Seeds are averaged, in pairs "
        "where both methods have them. What other seeds would change is not in the intervals: see the spread.",
    )


def _task_differences(comparison: Comparison) -> Table:
    others = comparison.others
    return Table(
        topic="task_differences",
        title="Paired differences, task by task",
        header=(
            Text(f"{comparison.reference.label} minus", words=True),
            *(Text(other.label, method=_position(comparison, other)) for other in others),
        ),
        rows=tuple(
            (
                Text(f"{index + 1}. {task}", words=True),
                *(_difference(comparison.difference(other, task)) for other in others),
            )
            for index, task in enumerate(comparison.reference.first.tasks)
        )
        if others
        else (),
        legend="Final scores. Intervals by paired bootstrap over test items; p-values by sign flips of the items' "
        "differences, after Holm's correction over this table, bold at most 0.05.",
    )


def _position(comparison: Comparison, group: MethodGroup) -> int:
    return next(index for index, one in enumerate(comparison.groups) if one is group)


def _pairing(comparison: Comparison, other: MethodGroup) -> str:
    seeds = next(difference.seeds for difference in comparison.tasks if difference.other is other)
    return ", ".join(map(str, seeds)) if seeds else "not paired"


def _difference(found: Difference | None) -> Text:
    if found is None:
        return Text("–")
    test = found.test
    small = f"{format_interval((test.low, test.high))}, {format_p(found.adjusted_p)}"
    return Text(format_value(test.difference, "signed"), small, bold=found.significant)


def _expected(expected: Sequence[ExpectedResult]) -> Table:
    return Table(
        topic="expected_results",
        title="The source's expected results",
        header=tuple(
            Text(name, words=True) for name in ("expected", "met if", "method", "measured", "verdict", "remark")
        ),
        rows=tuple(
            (
                Text(result.claim, words=True),
                Text(result.rule or "–"),
                Text(result.method or "–", words=True),
                Text(result.text),
                Text(result.verdict, words=True, bold=result.verdict == "met", warning=result.verdict == "not met"),
                Text(result.remark, words=True),
            )
            for result in expected
        ),
        legend="The verdict goes by the measured mean over seeds, without a margin for seeds or test items. Scores "
        "lie in [0, 1]: one point is 0.01.",
    )
