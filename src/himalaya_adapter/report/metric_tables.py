"""The tables of the metrics of whole runs."""

from collections.abc import Sequence

from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.metric_table import MANY_METHODS, metric_rows
from himalaya_adapter.report.table import LONG, Table, Text, has_seeds, table, whiskers_legend, words

MATRIX_LEGEND = "a_{i,j} is the score on task j after training through task i of T; a_{0,j} is the frozen model."
READ_TOGETHER = "Read forgetting together with learning accuracy: who learns nothing forgets nothing."


def metric_tables(groups: Sequence[MethodGroup], *, by_method: bool | None = None) -> list[Table]:
    """The metrics of methods over their seeds, then seed by seed.

    Args:
        groups: The methods.
        by_method: The metrics as columns and a line per method; without it, for five methods or more.
    """
    if by_method is None:
        by_method = len(groups) >= MANY_METHODS
    first = [_by_method(groups, headline=True), _by_method(groups, headline=False)]
    return [*(first if by_method else [_by_metric(groups)]), *_seeds(groups)]


def _by_metric(groups: Sequence[MethodGroup]) -> Table:
    return Table(
        topic="headline",
        title="Metrics",
        header=(*words("metric"), *map(_method, groups), *words("formula")),
        rows=tuple((*words(row.metric.title), *row.cells, *words(row.metric.formula)) for row in metric_rows(groups)),
        legend=_legend(groups),
    )


def _by_method(groups: Sequence[MethodGroup], *, headline: bool) -> Table:
    chosen = [row for row in metric_rows(groups) if ("headline" in row.metric.marks) == headline]
    formulas = "; ".join(f"{row.metric.title}: {row.metric.formula}" for row in chosen)
    return Table(
        topic="headline" if headline else "further_metrics",
        title="Metrics" if headline else "Further metrics",
        header=(*words("method"), *(Text(row.name) for row in chosen)),
        rows=tuple(
            (_method(group, words=True), *(row.cells[index] for row in chosen)) for index, group in enumerate(groups)
        ),
        legend=(f"{_legend(groups)} " if headline else "") + f"{formulas}.",
    )


def _seeds(groups: Sequence[MethodGroup]) -> list[Table]:
    """Every seed's numbers, where a method has several."""
    if not has_seeds(groups):
        return []
    singles = [MethodGroup(group.look, (run,)) for group in groups for run in group.runs]
    chosen = [row for row in metric_rows(singles) if "headline" in row.metric.marks]
    rows = tuple(
        (
            Text(single.first.run_id, single.label, look=single.look, words=True),
            Text(str(single.seeds[0])),
            *(Text(row.cells[number].text, row.cells[number].small) for row in chosen),
        )
        for number, single in enumerate(singles)
    )
    header = (*words("run"), Text("seed"), *(Text(row.metric.title) for row in chosen))
    return [table("seeds", header, rows, folded=len(rows) > LONG)]


def _method(group: MethodGroup, *, words: bool = False) -> Text:
    seeds = f"{len(group.runs)} seeds" if len(group.runs) > 1 else f"seed {group.seeds[0]}"
    return Text(group.label, seeds, look=group.look, words=words)


def _legend(groups: Sequence[MethodGroup]) -> str:
    """How the metrics and the marks of the best are read."""
    clear = "" if has_seeds(groups) else "; ★ means that its interval overlaps no other's"
    best = "" if len(groups) == 1 else f"Bold is best{clear}. "
    return f"{MATRIX_LEGEND} {best}{whiskers_legend(groups)}{READ_TOGETHER}"
