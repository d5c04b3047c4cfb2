"""The tables of the paired tests against the reference."""

from himalaya_adapter.report.comparison import Comparison, Difference
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.metric_table import ARROWS, MANY_METHODS, format_interval, format_p, format_value
from himalaya_adapter.report.table import Table, Text, table, words
from himalaya_adapter.stream_metrics import METRICS


def measure_differences(comparison: Comparison) -> list[Table]:
    """The measures of the whole stream, a line per method; no table where nothing was tested."""
    tested = {difference.of for difference in comparison.measures}
    measures = [metric for metric in METRICS if metric.key in tested]
    rows = tuple(
        (
            Text(other.label, look=other.look, words=True),
            Text(_pairing(comparison, other)),
            *(_difference(comparison.difference(other, metric.key)) for metric in measures),
        )
        for other in comparison.others
    )
    names = (Text(metric.title + ARROWS[metric.better]) for metric in measures)
    header = (*words(f"{comparison.reference.label} minus"), Text("seeds"), *names)
    return [table("paired_tests", header, rows)] if rows else []


def task_differences(comparison: Comparison) -> list[Table]:
    """The final score of every task, a column per method; no table where nothing was tested."""
    others = comparison.others
    if not others:
        return []
    names = (Text(other.label, look=other.look) for other in others)
    rows = [
        (*words(f"{place}. {task}"), *(_difference(comparison.difference(other, task)) for other in others))
        for place, task in enumerate(comparison.reference.first.tasks, start=1)
    ]
    header = (*words(f"{comparison.reference.label} minus"), *names)
    return [table("task_tests", header, rows, folded=len(comparison.groups) >= MANY_METHODS)]


def _pairing(comparison: Comparison, other: MethodGroup) -> str:
    seeds = next(difference.seeds for difference in comparison.tasks if difference.other is other)
    return ", ".join(map(str, seeds)) if seeds else "not paired"


def _difference(found: Difference | None) -> Text:
    if found is None:
        return Text("–")
    test = found.test
    small, p = format_interval((test.low, test.high)), format_p(found.adjusted_p)
    return Text(format_value(test.difference, "signed"), small, p, bold=found.significant)
