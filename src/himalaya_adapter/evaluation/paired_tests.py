"""Paired tests between methods on the same test items.

Two methods answered the same items, and what makes an item easy or hard for both says nothing about their difference.
So an item is drawn, or its answers are swapped between the methods, for both at once.

Everything here is conditional on the adapters as they were trained: it says how far a difference could move with other
test items, not with other seeds of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from himalaya_adapter import stream_metrics
from himalaya_adapter.evaluation import metrics
from himalaya_adapter.evaluation.intervals import RESAMPLES, Array, bootstrap_weights, percentile_interval
from himalaya_adapter.evaluation.item_scores import ItemScores

BLOCKS = 10  # of RESAMPLES resamples: p-values down to 1/5000 survive a correction for dozens of comparisons
EXACT_ITEMS = 12  # up to so many items that differ, all sign patterns are counted instead of drawn
ROUNDING = 1e-9  # two sums of the same differences in another order are equal
MEASURES = {key: metrics.MEASURES[key] for key in stream_metrics.keys("paired")}


@dataclass(frozen=True)
class ScoredRun:
    """A run's accuracy matrix and the scores of the items behind it.

    Attributes:
        matrix: T rows; ``matrix[i][j]``, j ≤ i, the score on task j after training through task i, None where it was
            not measured.
        item_scores: ``item_scores[i][j]`` holds the scores of the test items of task j, in the order of the test set,
            wherever ``matrix[i][j]`` was measured.
    """

    matrix: metrics.Matrix
    item_scores: ItemScores

    def items(self, rows: Sequence[int], task: int) -> Array:
        """Item scores of a task's cells, ``(rows, items)``, each row shifted so that its mean is the cell's score.

        For a metric that is the mean of its item scores nothing moves. One of the whole test set (BLEU, macro-F1) is
        taken to vary as the mean of its item scores does, as in ``metrics.bootstrap_retained_accuracy``; by how much
        it does vary is not known from the items' scores.
        """
        scores = np.array([self.item_scores[row][task] for row in rows], dtype=np.float64)
        cells = np.array([[self.matrix[row][task]] for row in rows], dtype=np.float64)
        return scores - scores.mean(axis=1, keepdims=True) + cells


@dataclass(frozen=True)
class PairedTest:
    """A difference, its 95 % interval and the two-sided p-value of "there is none"."""

    difference: float
    low: float
    high: float
    p: float


def resampled_measures(runs: Sequence[ScoredRun], *, seed: int) -> list[dict[str, Array]]:
    """The measures of each run on resampled test items, the same resample of items for all runs and rows.

    Args:
        runs: Runs on the same tasks and test items.
        seed: Seed of the resampling.

    Returns:
        Of each run, for each name in ``MEASURES``, the values on ``BLOCKS × RESAMPLES`` resamples.

    Raises:
        ValueError: The runs hold different tasks or numbers of items, or a measured cell has no item scores.
    """
    generator = np.random.default_rng(seed)
    columns = [_columns(run) for run in runs]
    for j, of_task in enumerate(zip(*columns, strict=True)):
        sizes = {column.items.shape[1] for column in of_task}
        if len(sizes) > 1:
            raise ValueError(f"the runs hold {sorted(sizes)} item scores of task {j}, expected the same test items")
    blocks = [_resampled_block(columns, generator) for _ in range(BLOCKS)]
    return [
        {name: np.concatenate([block[run][name] for block in blocks]) for name in MEASURES} for run in range(len(runs))
    ]


@dataclass(frozen=True)
class _Column:
    """What a run scored on one task; neighbouring rows of the matrix with the same item scores stand here once.

    Attributes:
        items: Item scores ``(rows, items)``: of the different rows before the last one, then of the last one.
        area: What a score in each of these rows adds to the area under the retained accuracy, ``(rows,)``.
        learnt: The row right after the task was learnt.
    """

    items: Array
    area: Array
    learnt: int


def _columns(run: ScoredRun) -> list[_Column]:
    triangle, measured = metrics.lower_triangle(run.matrix), metrics.measured_rows(run.matrix)
    share = np.zeros(len(triangle))  # of a score in each row, by the trapezoidal rule
    share[measured] = metrics.area_under_curve(np.eye(len(measured)), measured) / (np.array(measured) + 1)
    columns = []
    for j in range(len(triangle)):
        rows = [i for i in range(j, len(triangle)) if not np.isnan(triangle[i, j])]
        items = run.items(rows, j)
        earlier = items[:-1]
        new = np.ones(len(earlier), dtype=bool)
        new[1:] = np.any(earlier[1:] != earlier[:-1], axis=1)
        place = np.append(np.cumsum(new) - 1, np.sum(new))  # of each row of the matrix among those kept
        area = np.bincount(place, weights=share[rows]).astype(np.float64)
        columns.append(_Column(np.vstack([earlier[new], items[-1:]]), area, int(place[0])))
    return columns


def _resampled_block(columns: Sequence[Sequence[_Column]], generator: np.random.Generator) -> list[dict[str, Array]]:
    tasks = len(columns[0])
    area, learnt, final, forgotten = np.zeros((4, len(columns), RESAMPLES))
    for j in range(tasks):
        weights = bootstrap_weights(columns[0][j].items.shape[1], generator)
        weights /= weights.shape[1]
        for run, of_run in enumerate(columns):
            cells = of_run[j].items @ weights.T  # (rows, resamples)
            np.clip(cells, 0.0, 1.0, out=cells)
            area[run] += of_run[j].area @ cells
            learnt[run] += cells[of_run[j].learnt] / tasks
            final[run] += cells[-1] / tasks
            if j < tasks - 1:
                forgotten[run] += (cells[:-1].max(axis=0) - cells[-1]) / (tasks - 1)
    return [
        {
            "retained_accuracy_auc": area[run],
            "average_accuracy": final[run],
            "learning_accuracy": learnt[run],
            "forgetting": forgotten[run],
        }
        for run in range(len(columns))
    ]


def bootstrap_test(difference: float, resampled: Array) -> PairedTest:
    """Paired bootstrap (Efron and Tibshirani, 1993): interval and p-value from resampled differences.

    ``p = 2 · min(P(d* ≤ 0), P(d* ≥ 0))``, at most 1, each share counted with the observed sample, (1 + #) / (1 + R):
    twice the level at which the percentile interval begins to hold 0.

    Args:
        difference: The difference as it was measured.
        resampled: The differences on resampled items, ``(R,)``.
    """
    low, high = percentile_interval(resampled, difference)
    # A difference that is 0 up to rounding lies on both sides.
    below, above = np.sum(resampled <= ROUNDING), np.sum(resampled >= -ROUNDING)
    p = 2 * (1 + min(int(below), int(above))) / (1 + len(resampled))
    return PairedTest(difference, low, high, min(1.0, p))


def item_tests(differences: Array, *, seed: int) -> list[PairedTest]:
    """Mean difference over the items of one task: interval by paired bootstrap, p-value by sign flips.

    The sign-flip test (Fisher's randomisation of paired differences) asks how often a sum as far from 0 arises if the
    two methods' answers to every item were swapped by the toss of a coin. It needs no assumption but that, so it also
    holds for a few items and for scores that are 0 or 1.

    Args:
        differences: Differences of the item scores, ``(comparisons, items)``.
        seed: Seed of the resampling and of the tosses, which all comparisons share.
    """
    generator = np.random.default_rng(seed)
    weights = bootstrap_weights(differences.shape[1], generator) / differences.shape[1]
    resampled = weights @ differences.T  # (resamples, comparisons)
    p_values = _sign_flip_p(differences, generator)
    tests = []
    for of_one, draws, p in zip(differences, resampled.T, p_values, strict=True):
        difference = float(of_one.mean())
        tests.append(PairedTest(difference, *percentile_interval(draws, difference), p))
    return tests


def _sign_flip_p(differences: Array, generator: np.random.Generator) -> list[float]:
    comparisons, items = differences.shape
    countable = np.sum(np.abs(differences) > ROUNDING, axis=1) <= EXACT_ITEMS
    if np.all(countable):
        return [exact_sign_flip_p(of_one) for of_one in differences]
    total = differences.sum(axis=1)
    as_far = np.zeros(comparisons, dtype=np.int64)
    for _ in range(BLOCKS):
        kept = generator.integers(2, size=(RESAMPLES, items)) @ differences.T  # the other items change their sign
        as_far += np.sum(np.abs(2 * kept - total) >= np.abs(total) - ROUNDING, axis=0)
    drawn = (1 + as_far) / (1 + BLOCKS * RESAMPLES)
    return [
        exact_sign_flip_p(of_one) if exact else float(p)
        for of_one, exact, p in zip(differences, countable, drawn, strict=True)
    ]


def exact_sign_flip_p(differences: Array) -> float:
    """Share of all sign patterns of ``differences``, ``(items,)``, whose sum is as far from 0 as the observed one."""
    differing = differences[np.abs(differences) > ROUNDING]  # the sign of a 0 changes no sum
    patterns = np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing)) & 1  # (2^items, items)
    sums = (2.0 * patterns - 1.0) @ differing
    return float(np.mean(np.abs(sums) >= abs(differing.sum()) - ROUNDING))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them (Holm, 1979), in the order given.

    The k-th smallest of m is multiplied by m − k + 1, capped at 1 and never below the adjusted smaller ones: rejecting
    those at most 0.05 errs anywhere in the family with probability at most 0.05, however the tests depend.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted
