"""The headline table: every metric with its formula, its interval or spread, and the best method marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from himalaya_adapter.report.method_groups import MethodGroup, Spread
from himalaya_adapter.report.run_folder import Cell, RunRecord
from himalaya_adapter.report.table import Text
from himalaya_adapter.stream_metrics import METRICS, Kind, Metric

FULL_COUNT = 1000  # means of counts from here on have no decimals
NORM_TOLERANCE = 1e-4  # rounding of a unit norm in bfloat16 sums

Interval = tuple[float, float]
ARROWS = {"higher": " ↑", "lower": " ↓", "near zero": " → 0"}
MANY_METHODS = 5  # from here on tables hold a line, not a column, per method


@dataclass(frozen=True)
class Row:
    """A metric and one cell per method: the mean of several seeds, of a norm the largest."""

    metric: Metric
    cells: tuple[Text, ...]

    @property
    def name(self) -> str:
        """The metric's title, with the direction in which it is better."""
        return self.metric.title + ("" if "unranked" in self.metric.marks else ARROWS[self.metric.better])


def metric_rows(groups: Sequence[MethodGroup]) -> list[Row]:
    """The rows of the headline table; a metric that no method has, or that one task cannot have, is left out."""
    alike = len({str(run.metrics.get("measured_rows")) for group in groups for run in group.runs}) == 1
    rows = []
    for metric in METRICS:
        values = [_value(group, metric) for group in groups]
        alone = "of several tasks" in metric.marks and len(groups[0].first.tasks) == 1
        if alone or all(value is None for value in values):
            continue
        intervals = [metric_interval(group.first, metric) if len(group.runs) == 1 else None for group in groups]
        comparable = alike or "of measured rows" not in metric.marks
        ranked = [
            value if comparable and not group.is_bound else None for group, value in zip(groups, values, strict=True)
        ]
        best, clear = _best(metric, ranked, intervals)
        cells = []
        for index, (group, value, interval) in enumerate(zip(groups, values, intervals, strict=True)):
            exceeds = any(_exceeds_bound(run, metric) for run in group.runs)
            text = format_value(value, metric.kind) + " above the bound" * exceeds
            small = format_interval(interval) or format_deviation(group.spread(metric.key), metric.kind)
            cells.append(Text(text, small, bold=index in best, clear=index in clear, warning=exceeds))
        rows.append(Row(metric, tuple(cells)))
    return rows


def _value(group: MethodGroup, metric: Metric) -> float | None:
    """The mean over the seeds; of a norm, which has a bound to keep, the largest."""
    over_seeds = group.spread(metric.key)
    if over_seeds is None:
        return None
    return max(group.values(metric.key)) if metric.kind == "norm" else over_seeds.mean


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


def format_value(value: Any, kind: Kind) -> str:
    """Print a value for people: three decimals, SI bytes, hours and minutes, a true minus; a dash for None."""
    if value is None:
        return "–"
    if kind == "bytes":
        return format_bytes(value)
    if kind == "count":
        return f"{round(value):,}" if value >= FULL_COUNT else f"{value:g}"
    if kind == "seconds":
        return format_seconds(value)
    rounded = round(value, 3) + 0.0  # + 0.0 turns −0.0 into 0.0
    text = f"{rounded:+.3f}" if kind == "signed" and rounded else f"{rounded:.3f}"
    return text.replace("-", "−")


def format_deviation(over_seeds: Spread | None, kind: Kind) -> str:
    """``± 0.004``, the standard deviation over seeds; nothing for one seed, and of a norm, whose largest is shown."""
    if over_seeds is None or over_seeds.deviation is None or kind == "norm":
        return ""
    if over_seeds.deviation == 0 and kind in ("bytes", "count"):
        return ""
    return f"± {format_value(over_seeds.deviation, 'score' if kind == 'signed' else kind)}"


def format_interval(interval: Interval | None) -> str:
    """``[0.684, 0.742]``, or nothing for None."""
    if interval is None:
        return ""
    return f"[{format_value(interval[0], 'score')}, {format_value(interval[1], 'score')}]"


def format_p(p: float) -> str:
    """``p = 0.031`` or ``p < 0.001``."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def format_bytes(count: float) -> str:
    """Bytes in SI units (1 kB = 1000 bytes) with three significant figures or more."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """``42.1 s``, ``3 min 20 s`` or ``1 h 12 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _best(
    metric: Metric, values: Sequence[float | None], intervals: Sequence[Interval | None]
) -> tuple[set[int], set[int]]:
    known = {index: value for index, value in enumerate(values) if value is not None}
    if len(known) < 2 or "unranked" in metric.marks or len(set(known.values())) == 1:
        return set(), set()
    goodness = {"higher": lambda value: value, "lower": lambda value: -value, "near zero": lambda value: -abs(value)}
    top = max(known, key=lambda index: goodness[metric.better](known[index]))
    best = {index for index in known if known[index] == known[top]}
    mine, others = intervals[top], [intervals[index] for index in known if index != top]
    apart = mine is not None and all(
        other is not None and (mine[0] > other[1] or mine[1] < other[0]) for other in others
    )
    return best, {top} if apart else set()
