"""The tables of the paired tests against the reference."""

from himalaya_adapter.report.comparison import Comparison, Difference
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.metric_table import ARROWS, MANY_METHODS, format_interval, format_p, format_value
from himalaya_adapter.report.table import Table, Text
from himalaya_adapter.stream_metrics import METRICS


def measure_differences(comparison: Comparison) -> Table:
    """The measures of the whole stream, a line per method; without lines where nothing was tested."""
    tested = {difference.of for difference in comparison.measures}
    measures = [metric for metric in METRICS if metric.key in tested]
    return Table(
        topic="paired_differences",
        title="Paired tests",
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


def task_differences(comparison: Comparison) -> Table:
    """The final score of every task, a column per method; without lines where nothing was tested."""
    others = comparison.others
    return Table(
        topic="task_differences",
        title="Paired tests, task by task",
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
        "differences, after Holm's correction over this table, bold at most 0.05. Of a metric that belongs to a whole "
        "test set (macro-F1, entity-F1, BLEU) the mean of the items' own scores is compared.",
        folded=len(comparison.groups) >= MANY_METHODS,
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
    interval, p = format_interval((test.low, test.high)), format_p(found.adjusted_p)
    return Text(format_value(test.difference, "signed"), interval, p, bold=found.significant)
