"""The tables of the scores: the metrics of whole runs, every task, and the paired tests against the reference."""

import math
from collections.abc import Callable, Sequence

from himalaya_adapter.report.comparison import Comparison, Difference
from himalaya_adapter.report.formats import Interval, format_deviation, format_interval, format_seconds, format_value
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.run_folder import Cell, RunRecord
from himalaya_adapter.report.table import LONG, Table, Text, table, words
from himalaya_adapter.stream_metrics import METRICS, Metric

NORM_TOLERANCE = 1e-4  # rounding of a unit norm in bfloat16 sums
ARROWS = {"higher": " ↑", "lower": " ↓", "near zero": " → 0"}
GOODNESS: dict[str, Callable[[float], float]] = {
    "higher": lambda value: value,
    "lower": lambda value: -value,
    "near zero": lambda value: -abs(value),
}
EXTRA_SCORES = {"unlabelled": "without label", "released": "release file"}  # only some methods have them
Rows = dict[Metric, list[Text]]  # of each metric a cell per method


# Metrics -------------------------------------------------------------------------------------------------------------


def metric_tables(groups: Sequence[MethodGroup]) -> list[Table]:
    """The metrics of one method with their formulas, or a line per method; then seed by seed."""
    rows, methods = metric_rows(groups), [_method(group) for group in groups]
    if len(groups) == 1:
        lines = [(metric.title, *cells, metric.formula) for metric, cells in rows.items()]
        return [table("metrics", (*words("metric"), *methods, *words("formula")), lines), *_seeds(groups)]
    headline = {metric: cells for metric, cells in rows.items() if "headline" in metric.marks}
    further = {metric: cells for metric, cells in rows.items() if metric not in headline}
    tables = []
    for topic, chosen in (("headline", headline), ("further_metrics", further)):
        header = (*words("method"), *map(_name, chosen))
        lines = [*zip(methods, *chosen.values(), strict=True)]
        formulas = "; ".join(f"{metric.title}: {metric.formula}" for metric in chosen)
        tables.append(table(topic, header, lines, also=f"{formulas}."))
    return [*tables, *_seeds(groups)]


def metric_rows(groups: Sequence[MethodGroup]) -> Rows:
    """The mean over the seeds, of a norm the largest; no row of what no method has, or one task cannot have."""
    alike = len({str(run.metrics.get("measured_rows")) for group in groups for run in group.runs}) == 1
    rows: Rows = {}
    for metric in METRICS:
        values = [_value(group, metric) for group in groups]
        alone = "of several tasks" in metric.marks and len(groups[0].first.tasks) == 1
        if alone or all(value is None for value in values):
            continue
        ranked = "unranked" not in metric.marks and (alike or "of measured rows" not in metric.marks)
        best = _are_best(metric.better, groups, values if ranked else [None] * len(values))
        rows[metric] = []
        for group, value, is_best in zip(groups, values, best, strict=True):
            exceeds = any(_exceeds_bound(run, metric) for run in group.runs)
            interval = metric_interval(group.first, metric) if len(group.runs) == 1 else None
            small = format_interval(interval) or format_deviation(group.spread(metric.key), metric.kind)
            text = format_value(value, metric.kind) + " above the bound" * exceeds
            rows[metric].append(Text(text, small, bold=is_best, warning=exceeds))
    return rows


def _value(group: MethodGroup, metric: Metric) -> float | None:
    """The mean over the seeds; of a norm, which has a bound to keep, the largest."""
    over_seeds = group.spread(metric.key)
    if over_seeds is None:
        return None
    return max(group.values(metric.key)) if metric.kind == "norm" else over_seeds.mean


def _are_best(better: str, groups: Sequence[MethodGroup], values: Sequence[float | None]) -> list[bool]:
    """Of each method whether no other is better; none is, if they are all the same."""
    ranked = [value if group.first.is_ranked else None for group, value in zip(groups, values, strict=True)]
    known = {value for value in ranked if value is not None}
    best = max(known, key=GOODNESS[better]) if len(known) > 1 else math.nan
    return [value == best for value in ranked]


def _exceeds_bound(run: RunRecord, metric: Metric) -> bool:
    """Whether a run's value is above the bound that its own adapter has."""
    value = run.metrics.get(metric.key)
    if value is None or metric.bound is None:
        return False
    return bool(value > metric.bound(run.adapter_config) + NORM_TOLERANCE)


def metric_interval(run: RunRecord, metric: Metric) -> Interval | None:
    """The 95 % interval of a run's metric; None if it has none, or an old run has not recorded it."""
    if metric.interval == "recorded":
        low, high = run.metrics.get(f"{metric.key}_low"), run.metrics.get(f"{metric.key}_high")
        return None if low is None or high is None else (low, high)
    if metric.interval == "curve":
        last = run.metrics["retained_accuracy"][-1]
        return last["low"], last["high"]
    if metric.interval is None:
        return None
    return interval_of_mean(run.after_learning if metric.interval == "after_learning" else run.before)


def interval_of_mean(cells: Sequence[Cell]) -> Interval:
    """The 95 % interval of the mean score of several tasks, whose test items are independent.

    Errors of independent means add in squares, so each side is √(Σ_j (distance of the side from a_j)²) / T.
    """
    mean = math.fsum(cell["score"] for cell in cells) / len(cells)
    below = math.hypot(*(cell["score"] - cell["low"] for cell in cells)) / len(cells)
    above = math.hypot(*(cell["high"] - cell["score"] for cell in cells)) / len(cells)
    return mean - below, mean + above


def _seeds(groups: Sequence[MethodGroup]) -> list[Table]:
    """Every seed's numbers, where a method has several."""
    singles = [MethodGroup(group.look, (run,)) for group in groups for run in group.runs]
    if len(singles) == len(groups):
        return []
    chosen = {metric: cells for metric, cells in metric_rows(singles).items() if "headline" in metric.marks}
    rows = [
        (
            Text(single.first.run_id, single.label, look=single.look),
            str(single.seeds[0]),
            *(Text(cells[number].text, cells[number].small) for cells in chosen.values()),
        )
        for number, single in enumerate(singles)
    ]
    header = (*words("run"), "seed", *(metric.title for metric in chosen))
    return [table("seeds", header, rows, folded=len(rows) > LONG)]


def _method(group: MethodGroup) -> Text:
    seeds = f"{len(group.runs)} seeds" if len(group.runs) > 1 else f"seed {group.seeds[0]}"
    return Text(group.label, seeds, look=group.look)


def _name(metric: Metric) -> str:
    return metric.title + ("" if "unranked" in metric.marks else ARROWS[metric.better])


# Tasks ---------------------------------------------------------------------------------------------------------------


def task_tables(groups: Sequence[MethodGroup]) -> list[Table]:
    """Every task after the last one and right after learning, a column per method."""
    first = groups[0].first
    header = (*words("task", "metric"), "n", "frozen", *(Text(group.label, look=group.look) for group in groups))
    tables = []
    for topic, methods in (
        ("tasks_now", [group.final for group in groups]),
        ("tasks_learnt", [group.after_learning for group in groups]),
    ):
        rows = []
        for name, before, *cells in zip(_task_names(first), first.before, *methods, strict=True):
            best = _are_best("higher", groups, [cell["score"] for cell in cells])
            of_methods = (
                _score(cell, len(group.runs) > 1, bold=is_best)
                for group, cell, is_best in zip(groups, cells, best, strict=True)
            )
            rows.append((*name, _score(before), *of_methods))
        tables.append(table(topic, header, rows, folded=len(rows) > LONG))
    return tables


def task_table_of(run: RunRecord) -> Table:
    """Every task of one run, with all that is known of it."""
    tasks = run.metrics["tasks"]
    extra = {key: title for key, title in EXTRA_SCORES.items() if key in tasks[0]}
    rows = []
    for name, before, learnt, now, task in zip(
        _task_names(run), run.before, run.after_learning, run.final, tasks, strict=True
    ):
        change = format_value(now["score"] - learnt["score"], "signed")
        others = (
            format_value(score, "score") for score in (now.get("strict"), *(task[key]["score"] for key in extra))
        )
        seconds = format_seconds(task["eval_seconds"]) if "eval_seconds" in task else "–"
        rows.append((*name, _score(before), _score(learnt), _score(now), change, *others, seconds))
    columns = ("n", "frozen", "learnt", "now", "change", "exact match", *extra.values(), "time")
    return table("tasks", (*words("task", "metric"), *columns), rows)


def _task_names(run: RunRecord) -> list[tuple[str, ...]]:
    names = zip(run.numbered, run.final, strict=True)
    return [(name, cell["metric"], str(cell["n"])) for name, cell in names]


def _score(cell: Cell, varies: bool = False, *, bold: bool = False) -> Text:
    deviation = f"± {format_value((cell['high'] - cell['low']) / 2, 'score')}"
    small = deviation if varies else format_interval((cell["low"], cell["high"]))
    return Text(format_value(cell["score"], "score"), small, bold=bold)


# Paired tests --------------------------------------------------------------------------------------------------------


def measure_differences(comparison: Comparison) -> list[Table]:
    """The measures of the whole stream, a line per method; no table where nothing was tested."""
    rivals = comparison.rivals
    measures = [metric for metric in METRICS if any(metric.key in rival.measures for rival in rivals)]
    rows = [
        (
            Text(rival.group.label, look=rival.group.look),
            ", ".join(map(str, rival.seeds)) or "not paired",
            *(_difference(rival.measures.get(metric.key)) for metric in measures),
        )
        for rival in rivals
    ]
    header = (*words(f"{comparison.reference.label} minus"), "seeds", *map(_name, measures))
    return [table("paired_tests", header, rows)] if rows else []


def task_differences(comparison: Comparison) -> list[Table]:
    """The final score of every task, a column per method; no table where nothing was tested."""
    run, rivals = comparison.reference.first, comparison.rivals
    names = (Text(rival.group.label, look=rival.group.look) for rival in rivals)
    rows = [
        (name, *(_difference(rival.tasks[task]) for rival in rivals))
        for name, task in zip(run.numbered, run.tasks, strict=True)
    ]
    header = (*words(f"{comparison.reference.label} minus"), *names)
    return [table("task_tests", header, rows, folded=len(rows) > LONG)] if rivals else []


def _difference(found: Difference | None) -> Text:
    if found is None:
        return Text("–")
    p = f"p = {found.p_holm:.3f}" if found.p_holm >= 0.001 else "p < 0.001"
    small = f"{format_interval(found.interval) or 'no interval'},\n{p}"
    return Text(format_value(found.difference, "signed"), small, bold=found.significant)
