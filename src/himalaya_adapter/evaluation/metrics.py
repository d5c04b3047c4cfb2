"""The measures of continual learning, each a pure function of the accuracy matrix.

``a[i][j]`` is the score, in [0, 1], on task ``j`` after training through task ``i``. The formulas count tasks from 1
to T; the code counts from 0. A row may stop at the diagonal (``i + 1`` entries) or hold all T tasks; what lies right
of the diagonal is never read. Libraries disagree on "forgetting", so each formula stands here in full.

To save time a run may leave cells out (``None``): all but the diagonal of some rows, never of the last. A row that is
whole up to the diagonal is *measured*; the first and the last always are. Average accuracy, learning accuracy and
backward transfer read only the diagonal and the last row, so they do not change. The other formulas are taken over the
cells that are there, as each says; nothing is filled in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from himalaya_adapter import stream_metrics
from himalaya_adapter.evaluation.intervals import RESAMPLES, Array, bootstrap_weights, percentile_interval

# A float; of matrices on resampled items, an array (T, T, resamples), an array with a value for each.
Value = Any
Matrix = Sequence[Sequence[float | None]] | Array
ItemScores = Sequence[Sequence[Sequence[float] | None]]
Interval = tuple[float, float]


def lower_triangle(a: Matrix) -> Array:
    """The matrix as an array of shape ``(T, T)``, NaN right of the diagonal and where nothing was measured.

    Raises:
        ValueError: The matrix has no rows, a row does not reach the diagonal, or a cell of the diagonal or of the last
            row was not measured.
    """
    if isinstance(a, np.ndarray) and a.ndim == 3:  # of `resampled`
        return a
    if not len(a):
        raise ValueError("the accuracy matrix has no rows; train through at least one task")
    triangle = np.full((len(a), len(a)), np.nan)
    for i, row in enumerate(a):
        if len(row) <= i:
            raise ValueError(f"row {i} of the accuracy matrix has {len(row)} entries, expected at least {i + 1}")
        triangle[i, : i + 1] = np.array(row[: i + 1], dtype=np.float64)  # None becomes NaN
    if np.isnan([*np.diag(triangle), *triangle[-1]]).any():
        raise ValueError("the diagonal and the last row of the accuracy matrix must be measured")
    return triangle


def rows_to_measure(rows: str, tasks: int) -> list[int]:
    """The rows of the matrix that a run measures whole, by ``evaluation.rows``; of the others only the diagonal.

    Args:
        rows: ``all``; ``last``; or a number k: every k-th row, ``k, 2k, …`` counted from 1. The first row, which is
            its own diagonal, and the last always belong to them.
        tasks: T.

    Returns:
        Positions, counted from 0.
    """
    every = {"all": 1, "last": tasks}.get(rows) or int(rows)
    return sorted({0, *range(every - 1, tasks, every), tasks - 1})


def measured_rows(a: Matrix) -> list[int]:
    """The rows that are whole up to the diagonal, counted from 0."""
    return [i for i, row in enumerate(lower_triangle(a)) if not np.isnan(row[: i + 1]).any()]


def average_accuracy(a: Matrix) -> Value:
    """``AA = mean_j a[T, j]``: the mean score over all tasks at the end of the stream."""
    return lower_triangle(a)[-1].mean(axis=0)


def learning_accuracy(a: Matrix) -> Value:
    """``LA = mean_j a[j, j]``: the mean score on each task right after it was learnt (plasticity)."""
    return diagonal(lower_triangle(a)).mean(axis=0)


def diagonal(triangle: Array) -> Array:
    """The scores of the tasks right after they were learnt, ``(T, ...)``."""
    return triangle[np.arange(len(triangle)), np.arange(len(triangle))]


def backward_transfer(a: Matrix) -> Value:
    """``BWT = mean_{j<T} (a[T, j] − a[j, j])`` (Lopez-Paz and Ranzato, 2017); 0 when T = 1."""
    triangle = lower_triangle(a)
    change = triangle[-1] - diagonal(triangle)
    return (change[:-1] if len(change) > 1 else change).mean(axis=0)


def forgetting(a: Matrix) -> Value:
    """``F = mean_{j<T} (max_{j≤l<T} a[l, j] − a[T, j])`` (Chaudhry et al., 2018); 0 when T = 1.

    The best score before the last task, minus the last one; negative when the last task improved the others. The mean
    is over T − 1 tasks. ``F ≥ −BWT`` always. The maximum is over the measured cells: fewer of them can only lower F.
    """
    triangle = lower_triangle(a)
    earlier = triangle[:-1, :-1] if len(triangle) > 1 else triangle
    return (np.nanmax(earlier, axis=0) - triangle[-1, : len(earlier)]).mean(axis=0)


def retained_accuracy(a: Matrix) -> Array:
    """``R_i = mean_{j≤i} a[i, j]`` of each measured row i: the mean score over the tasks seen so far."""
    return np.asarray(np.nanmean(lower_triangle(a)[measured_rows(a)], axis=1))


def average_anytime_accuracy(a: Matrix) -> Value:
    """``AAA = mean_i mean_{j≤i} a[i, j]`` over the measured rows i (Caccia et al., 2021)."""
    return retained_accuracy(a).mean(axis=0)


def retained_accuracy_auc(a: Matrix) -> Value:
    """``AUC = 1/(T − 1) · Σ_{i<T} (R_i + R_{i+1}) / 2`` with ``R_i = mean_{j≤i} a[i, j]``; ``R_1`` when T = 1.

    The area under the retained accuracy over the stream by the trapezoidal rule, scaled to [0, 1]. The rule runs over
    the measured rows at their true distances, ``1/(T − 1) · Σ_k (i_{k+1} − i_k) (R_{i_k} + R_{i_{k+1}}) / 2``: with
    the first and the last row alone it is ``(R_1 + R_T) / 2``.
    """
    retained, rows = retained_accuracy(a), measured_rows(a)
    if len(rows) == 1:
        return retained[0]
    return np.trapezoid(np.ascontiguousarray(retained.T), rows, axis=-1) / (rows[-1] - rows[0])


def retention(a: Matrix) -> Value:
    """``Ret = mean_{i≥2} mean_{j<i} min(1, a[i, j] / a[j, j])`` over the measured rows i; 1 when T = 1.

    A task that scored 0 right after it was learnt has nothing to lose: its ratio counts as 1.
    """
    triangle = lower_triangle(a)
    learnt = diagonal(triangle)
    rows = [
        np.mean([1.0 if triangle[i, j] >= learnt[j] else triangle[i, j] / learnt[j] for j in range(i)])
        for i in measured_rows(a)
        if i > 0
    ]
    return np.mean(rows) if rows else 1.0


# By the names that the table of all metrics gives them.
MEASURES: dict[str, Callable[[Matrix], Value]] = {key: globals()[key] for key in stream_metrics.keys("of matrix")}


@dataclass(frozen=True)
class ScoredRun:
    """A run's accuracy matrix and the scores of the items behind it.

    Attributes:
        matrix: T rows; ``matrix[i][j]``, j ≤ i, the score on task j after training through task i, None where it was
            not measured.
        item_scores: ``item_scores[i][j]`` holds the scores of the test items of task j, in the order of the test set,
            wherever ``matrix[i][j]`` was measured.
    """

    matrix: Matrix
    item_scores: ItemScores


def resampled(runs: Sequence[ScoredRun], generator: np.random.Generator) -> list[Array]:
    """The matrices of runs on the same tasks with resampled test items, each ``(T, T, RESAMPLES)``.

    The test items of a task are the same in every row of every matrix, so one resample of them serves its whole
    column: the noise of easy and hard items then cancels between rows and runs as it does in the matrices. What
    training itself would vary from seed to seed is not in there.

    A resampled cell is ``a[i][j]`` plus the change that resampling makes to the mean of its item scores. For a metric
    that is that mean, this is the resampled mean; one of the whole test set (BLEU, macro-F1) is taken to vary as much.

    Raises:
        ValueError: A matrix is malformed.
    """
    triangles = [lower_triangle(run.matrix) for run in runs]
    matrices = [np.full((*triangle.shape, RESAMPLES), np.nan) for triangle in triangles]
    for j in range(len(triangles[0])):
        measured = [np.flatnonzero(~np.isnan(triangle[:, j])).tolist() for triangle in triangles]
        items = [
            np.array([run.item_scores[i][j] for i in rows], dtype=np.float64)  # (rows, items)
            for run, rows in zip(runs, measured, strict=True)
        ]
        weights = bootstrap_weights(items[0].shape[1], generator) / items[0].shape[1]  # (resamples, items)
        for matrix, triangle, rows, scores in zip(matrices, triangles, measured, items, strict=True):
            change = weights @ scores.T - scores.mean(axis=1)  # (resamples, rows)
            matrix[rows, j] = np.clip(triangle[rows, j] + change, 0.0, 1.0).T
    return matrices


def bootstrap_retained_accuracy(a: Matrix, item_scores: ItemScores, *, seed: int) -> tuple[Interval, list[Interval]]:
    """95 % intervals of the AUC and of each measured ``R_i``, from resampling the test items.

    Args:
        a: The accuracy matrix, T rows.
        item_scores: As in `ScoredRun`.
        seed: Seed of the resampling.

    Raises:
        ValueError: As `resampled`.
    """
    (draws,) = resampled([ScoredRun(a, item_scores)], np.random.default_rng(seed))
    auc = percentile_interval(retained_accuracy_auc(draws), retained_accuracy_auc(a))
    of_rows = zip(retained_accuracy(draws), retained_accuracy(a), strict=True)
    return auc, [percentile_interval(of_row, point) for of_row, point in of_rows]
