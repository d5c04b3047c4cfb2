"""The tables of a comparison, the same for the page, for Markdown and for LaTeX."""

from collections.abc import Sequence

from himalaya_adapter.report.comparison import Comparison
from himalaya_adapter.report.method_groups import MethodGroup, alone
from himalaya_adapter.report.metric_table import (
    ARROWS,
    MANY_METHODS,
    Entry,
    Row,
    metric_rows,
)
from himalaya_adapter.report.paired_tables import measure_differences, task_differences
from himalaya_adapter.report.table import Table, Text, has_seeds, whiskers_legend
from himalaya_adapter.report.task_tables import task_scores, task_scores_of_many

MATRIX_LEGEND = "a_{i,j} is the score on task j after training through task i of T; a_{0,j} is the frozen model."
READ_TOGETHER = "Read forgetting together with learning accuracy: who learns nothing forgets nothing."


def comparison_tables(comparison: Comparison, *, by_method: bool | None = None) -> list[Table]:
    """All tables, those without content left out.

    Args:
        comparison: The methods and their tests.
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
        measure_differences(comparison),
        *([task_scores(groups)] if len(groups) < MANY_METHODS else task_scores_of_many(groups)),
        task_differences(comparison),
    ]
    return [table for table in tables if table.rows]


def _marks(groups: Sequence[MethodGroup]) -> str:
    if len(groups) == 1:
        return whiskers_legend(groups)
    clear = "" if has_seeds(groups) else "; ★ means that its interval overlaps no other's"
    return f"Bold is best{clear}. {whiskers_legend(groups)}"


def _entry(entry: Entry) -> Text:
    text = f"{entry.text} above the bound" if entry.exceeds_bound else entry.text
    return Text(text, entry.spread, bold=entry.best, clear=entry.clear, warning=entry.exceeds_bound)


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
    chosen = [row for row in rows if ("headline" in row.metric.marks) == headline]
    formulas = "; ".join(f"{row.metric.title}: {row.metric.formula}" for row in chosen)
    return Table(
        topic="headline" if headline else "further_metrics",
        title="Metrics" if headline else "Further metrics",
        header=(
            Text("method", words=True),
            *(
                Text(row.metric.title + ("" if "unranked" in row.metric.marks else ARROWS[row.metric.better]))
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
    chosen = [row for row in metric_rows([single for _, single in singles]) if "headline" in row.metric.marks]
    several = len(singles) > len(groups)
    return Table(
        topic="seeds",
        title="Seed by seed",
        header=(Text("run", words=True), Text("seed"), *(Text(row.metric.title) for row in chosen)),
        rows=tuple(
            (
                Text(single.first.run_id, groups[index].label, method=index, words=True),
                Text(str(single.seeds[0])),
                *(Text(row.entries[number].text, row.entries[number].spread) for row in chosen),
            )
            for number, (index, single) in enumerate(singles)
        )
        if several
        else (),
        legend="Brackets are 95 % intervals over test items.",
    )
