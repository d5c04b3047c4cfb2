"""The headline table: every metric with its formula, its interval or spread, and the best method marked."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from himalaya_adapter.report.method_groups import MethodGroup, Spread
from himalaya_adapter.report.run_folder import Cell, RunRecord

LETTER_NORM_BOUND = 1.0  # ‖ΔW‖ ≤ 1, where an adapter's config names no other bound
ATOM_NORM_BOUND = 1.05  # rows of the dictionary after 3-bit storage
FULL_COUNT = 1000  # means of counts from here on have no decimals
NORM_TOLERANCE = 1e-4  # rounding of a unit norm in bfloat16 sums

Kind = Literal["score", "signed", "bytes", "count", "seconds", "norm"]
Better = Literal["higher", "lower", "near zero"]
Interval = tuple[float, float]


def update_norm_bound(adapter_config: Mapping[str, Any]) -> float:
    """What the norm of an adapter's update cannot exceed."""
    return float(adapter_config.get("norm_bound", LETTER_NORM_BOUND))


def atom_norm_bound(_: Mapping[str, Any]) -> float:
    """What the norm of an atom cannot exceed, whatever the adapter."""
    return ATOM_NORM_BOUND


@dataclass(frozen=True)
class Metric:
    """One row of the table; ``_{…}`` in a formula is a subscript, a_{i,j} the score on task j after task i.

    ``bound``, where there is one, is found from a run's ``adapter_config.json``: adapters have bounds of their own.
    """

    key: str
    title: str
    formula: str
    kind: Kind
    better: Better
    bound: Callable[[Mapping[str, Any]], float] | None = None


METRICS = (
    Metric(
        "retained_accuracy_auc",
        "Retained-accuracy AUC",
        "trapezoid over i = 1…T of mean_{j≤i} a_{i,j}, divided by T − 1",
        "score",
        "higher",
    ),
    Metric("average_accuracy", "Average accuracy (AA)", "mean_{j} a_{T,j}", "score", "higher"),
    Metric(
        "unlabelled_accuracy",
        "Without task labels",
        "mean_{j} a_{T,j}, each prompt answered as the task that it looks like",
        "score",
        "higher",
    ),
    Metric("tasks_recognised", "Tasks recognised", "share of test prompts told right", "score", "higher"),
    Metric("released_accuracy", "Release file", "mean_{j} a_{T,j} of the quantised adapter", "score", "higher"),
    Metric("learning_accuracy", "Learning accuracy (LA)", "mean_{j} a_{j,j}", "score", "higher"),
    Metric("forgetting", "Forgetting", "mean_{j<T} (max_{j≤l<T} a_{l,j} − a_{T,j})", "score", "lower"),
    Metric("backward_transfer", "Backward transfer", "mean_{j<T} (a_{T,j} − a_{j,j})", "signed", "higher"),
    Metric("retention", "Retention", "mean_{i≥2} mean_{j<i} min(1, a_{i,j} / a_{j,j})", "score", "higher"),
    Metric("average_anytime_accuracy", "Average anytime accuracy", "mean_{i} mean_{j≤i} a_{i,j}", "score", "higher"),
    Metric("frozen_accuracy", "Frozen model", "mean_{j} a_{0,j}, scored before training", "score", "higher"),
    Metric("base_drift", "Base-model drift", "perplexity on plain text, adapter on / off, − 1", "signed", "near zero"),
    Metric("stored_bytes", "Stored bytes", "every byte the adapter keeps, after the last task", "bytes", "lower"),
    Metric("released_bytes", "Bytes of the release file", "quantised, for inference only", "bytes", "lower"),
    Metric("trainable_parameters", "Trainable parameters", "numbers the optimiser moves", "count", "lower"),
    Metric("ewc_lambda", "EWC λ", "loss + λ/2 Σ_{i} F_{i} (θ_{i} − θ*_{i})²", "count", "lower"),
    Metric(
        "update_norm_max",
        "Largest update norm",
        "max ‖ΔW‖ seen; the method bounds it",
        "norm",
        "lower",
        update_norm_bound,
    ),
    Metric("atom_norm_max", "Largest atom norm", "max ‖atom‖ seen; bound 1.05", "norm", "lower", atom_norm_bound),
    Metric("peak_memory_bytes", "Peak memory", "largest memory of the process", "bytes", "lower"),
    Metric("train_seconds", "Training time", "wall clock, all tasks", "seconds", "lower"),
    Metric("eval_seconds", "Evaluation time", "wall clock, all evaluations", "seconds", "lower"),
)

# What stands in one line per method where there are too many methods for a column each.
HEADLINE = (
    *("retained_accuracy_auc", "average_accuracy", "learning_accuracy", "forgetting", "retention", "base_drift"),
    *("stored_bytes", "trainable_parameters", "train_seconds"),
)
ARROWS = {"higher": " ↑", "lower": " ↓", "near zero": " → 0"}
MANY_METHODS = 5  # from here on tables hold a line, not a column, per method

# A norm below its bound is not better for being smaller, all runs of a comparison share the frozen model, and a
# setting is no result.
UNRANKED = {"update_norm_max", "atom_norm_max", "frozen_accuracy", "ewc_lambda"}


# What depends on how many rows of the matrix were measured: best of runs that measured the same ones only.
OF_ALL_ROWS = {"retained_accuracy_auc", "forgetting", "retention", "average_anytime_accuracy"}


@dataclass(frozen=True)
class Entry:
    """One value of the table as it is printed.

    Attributes:
        text: The value, or a dash if the method has none; the mean of several seeds, of a norm the largest.
        spread: ``[low, high]``, with several seeds ``± standard deviation``; empty where neither is known.
        best: Best of the row, among at least two methods.
        clear: Best, and its interval overlaps no other method's.
        exceeds_bound: A norm above its bound, in at least one run.
    """

    text: str
    spread: str = ""
    best: bool = False
    clear: bool = False
    exceeds_bound: bool = False


@dataclass(frozen=True)
class Row:
    """A metric and one entry per method."""

    metric: Metric
    entries: tuple[Entry, ...]


def metric_rows(groups: Sequence[MethodGroup]) -> list[Row]:
    """The rows of the headline table; a metric that no method has is left out."""
    alike = len({str(run.metrics.get("measured_rows")) for group in groups for run in group.runs}) == 1
    rows = []
    for metric in METRICS:
        values = [_value(group, metric) for group in groups]
        if all(value is None for value in values):
            continue
        intervals = [metric_interval(group.first, metric.key) if len(group.runs) == 1 else None for group in groups]
        comparable = alike or metric.key not in OF_ALL_ROWS
        ranked = [
            value if comparable and not group.is_bound else None for group, value in zip(groups, values, strict=True)
        ]
        best, clear = _best(metric, ranked, intervals)
        entries = tuple(
            Entry(
                text=format_value(value, metric.kind),
                spread=format_interval(interval) or format_deviation(group.spread(metric.key), metric.kind),
                best=index in best,
                clear=index in clear,
                exceeds_bound=any(_exceeds_bound(run, metric) for run in group.runs),
            )
            for index, (group, value, interval) in enumerate(zip(groups, values, intervals, strict=True))
        )
        rows.append(Row(metric, entries))
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


def metric_interval(run: RunRecord, key: str) -> Interval | None:
    """The 95 % interval of a metric: the recorded one, else from the per-task intervals, else None.

    ``<key>_low`` and ``<key>_high`` in ``metrics.json`` win. Average accuracy is the last point of the
    retained-accuracy curve, whose interval is recorded; learning and frozen accuracy are means of independent tasks.
    """
    low, high = run.metrics.get(f"{key}_low"), run.metrics.get(f"{key}_high")
    if low is not None and high is not None:
        return low, high
    if key == "average_accuracy":
        last = run.metrics["retained_accuracy"][-1]
        return last["low"], last["high"]
    if key == "learning_accuracy":
        return interval_of_mean(run.after_learning)
    if key == "frozen_accuracy":
        return interval_of_mean(run.before)
    return None


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
    if len(known) < 2 or metric.key in UNRANKED or len(set(known.values())) == 1:
        return set(), set()
    goodness = {"higher": lambda value: value, "lower": lambda value: -value, "near zero": lambda value: -abs(value)}
    top = max(known, key=lambda index: goodness[metric.better](known[index]))
    best = {index for index in known if known[index] == known[top]}
    mine, others = intervals[top], [intervals[index] for index in known if index != top]
    apart = mine is not None and all(
        other is not None and (mine[0] > other[1] or mine[1] < other[0]) for other in others
    )
    return best, {top} if apart else set()
