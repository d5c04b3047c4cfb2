"""The numbers of a run over a whole stream: one table from which configs, runs, searches and reports read.

``_{…}`` in a formula is a subscript; a_{i,j} is the score in [0, 1] on task j after training through task i of T.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

LETTER_NORM_BOUND = 1.0  # ‖ΔW‖ ≤ 1, where an adapter's config names no other bound
ATOM_NORM_BOUND = 1.05  # rows of the dictionary after 3-bit storage

Kind = Literal["score", "signed", "bytes", "count", "seconds", "norm"]
Better = Literal["higher", "lower", "near zero"]
Mark = Literal["of matrix", "of measured rows", "of several tasks", "paired", "headline", "unranked"]
Interval = Literal["recorded", "curve", "after_learning", "before"]


def update_norm_bound(adapter_config: Mapping[str, Any]) -> float:
    """What the norm of an adapter's update cannot exceed."""
    return float(adapter_config.get("norm_bound", LETTER_NORM_BOUND))


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    Attributes:
        key: Its name in ``metrics.json``.
        title: Its name for people.
        formula: What it is.
        kind: How it is printed.
        better: Which values are better.
        marks: ``of matrix``: ``evaluation.metrics`` has a function of this name that computes it from the accuracy
            matrix. ``of measured rows``: it depends on which rows of the matrix were measured. ``of several tasks``:
            it says nothing of a single task. ``paired``: it is tested between methods on the same test items.
            ``headline``: it is shown first where there are many methods. ``unranked``: no method is best in it.
        interval: Where its 95 % interval comes from: ``recorded`` as ``<key>_low`` and ``<key>_high``; the last point
            of the ``curve`` of retained accuracy; the cells of independent tasks, ``after_learning`` or ``before``.
        bound: What it cannot exceed, from a run's ``adapter_config.json``.
    """

    key: str
    title: str
    formula: str
    kind: Kind = "score"
    better: Better = "higher"
    marks: tuple[Mark, ...] = ()
    interval: Interval | None = None
    bound: Callable[[Mapping[str, Any]], float] | None = None


METRICS = (
    Metric(
        "retained_accuracy_auc",
        "Retained-accuracy AUC",
        "trapezoid over i = 1…T of mean_{j≤i} a_{i,j}, divided by T − 1",
        marks=("of matrix", "of measured rows", "of several tasks", "paired", "headline"),
        interval="recorded",
    ),
    Metric(
        "average_accuracy",
        "Average accuracy (AA)",
        "mean_{j} a_{T,j}",
        marks=("of matrix", "paired", "headline"),
        interval="curve",
    ),
    Metric(
        "unlabelled_accuracy",
        "Without task labels",
        "mean_{j} a_{T,j}, each prompt answered as the task that it looks like",
    ),
    Metric("tasks_recognised", "Tasks recognised", "share of test prompts whose task was found"),
    Metric("released_accuracy", "Release file", "mean_{j} a_{T,j} of the quantised adapter"),
    Metric(
        "learning_accuracy",
        "Learning accuracy (LA)",
        "mean_{j} a_{j,j}",
        marks=("of matrix", "paired", "headline"),
        interval="after_learning",
    ),
    Metric(
        "forgetting",
        "Forgetting",
        "mean_{j<T} (max_{j≤l<T} a_{l,j} − a_{T,j})",
        better="lower",
        marks=("of matrix", "of measured rows", "of several tasks", "paired", "headline"),
    ),
    Metric(
        "backward_transfer",
        "Backward transfer",
        "mean_{j<T} (a_{T,j} − a_{j,j})",
        kind="signed",
        marks=("of matrix", "of several tasks"),
    ),
    Metric(
        "retention",
        "Retention",
        "mean_{i≥2} mean_{j<i} min(1, a_{i,j} / a_{j,j})",
        marks=("of matrix", "of measured rows", "of several tasks", "headline"),
    ),
    Metric(
        "average_anytime_accuracy",
        "Average anytime accuracy",
        "mean_{i} mean_{j≤i} a_{i,j}",
        marks=("of matrix", "of measured rows", "of several tasks"),
    ),
    Metric(
        "frozen_accuracy",
        "Frozen model",
        "mean_{j} a_{0,j}, scored before training",
        marks=("unranked",),  # all runs of a comparison share it
        interval="before",
    ),
    Metric(
        "base_drift",
        "Base-model drift",
        "perplexity on plain text, adapter on / off, − 1",
        kind="signed",
        better="near zero",
        marks=("headline",),
    ),
    Metric(
        "stored_bytes",
        "Stored bytes",
        "every byte the adapter keeps, after the last task",
        kind="bytes",
        better="lower",
        marks=("headline",),
    ),
    Metric("released_bytes", "Bytes of the release file", "quantised, for inference only", "bytes", "lower"),
    Metric(
        "trainable_parameters", "Trainable parameters", "numbers the optimiser moves", "count", "lower", ("headline",)
    ),
    # A setting, and no result.
    Metric("ewc_lambda", "EWC λ", "loss + λ/2 Σ_{i} F_{i} (θ_{i} − θ*_{i})²", "count", "lower", ("unranked",)),
    # A norm below its bound is not better for being smaller.
    Metric(
        "update_norm_max",
        "Largest update norm",
        "max ‖ΔW‖ seen; the method bounds it",
        kind="norm",
        better="lower",
        marks=("unranked",),
        bound=update_norm_bound,
    ),
    Metric(
        "atom_norm_max",
        "Largest atom norm",
        "max ‖atom‖ seen; bound 1.05",
        kind="norm",
        better="lower",
        marks=("unranked",),
        bound=lambda _: ATOM_NORM_BOUND,
    ),
    Metric(
        "cpu_latency_overhead",
        "CPU latency overhead",
        "one token after 128 in ONNX Runtime: time with the adapter / without − 1",
        kind="signed",
        better="lower",
        interval="recorded",
    ),
    Metric("peak_memory_bytes", "Peak memory", "largest memory of the process", "bytes", "lower"),
    Metric("train_seconds", "Training time", "wall clock, all tasks", "seconds", "lower", ("headline",)),
    Metric("eval_seconds", "Evaluation time", "wall clock, all evaluations", "seconds", "lower"),
)


def keys(mark: Mark) -> tuple[str, ...]:
    """The keys of the metrics with a mark."""
    return tuple(metric.key for metric in METRICS if mark in metric.marks)


LOWER_IS_BETTER = frozenset(metric.key for metric in METRICS if metric.better == "lower")
