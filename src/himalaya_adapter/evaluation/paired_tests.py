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
from himalaya_adapter.evaluation.metrics import ScoredRun

BLOCKS = 10  # of RESAMPLES resamples: p-values down to 1/5000 survive a correction for dozens of comparisons
EXACT_ITEMS = 12  # up to so many items that differ, all sign patterns are counted instead of drawn
ROUNDING = 1e-9  # two sums of the same differences in another order are equal
MEASURES = {key: metrics.MEASURES[key] for key in stream_metrics.keys("paired")}


@dataclass(frozen=True)
class PairedTest:
    """A difference, its 95 % interval and the two-sided p-value of "there is none".

    There is no interval where all items differ alike: every resample of them then gives the same difference, which
    says nothing of how far other items would move it.
    """

    difference: float
    low: float | None
    high: float | None
    p: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval, if there is one."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def resampled_measures(runs: Sequence[ScoredRun], *, seed: int) -> list[dict[str, Array]]:
    """The measures of each run on resampled test items, the same resample of items for all runs and rows.

    Args:
        runs: Runs on the same tasks and test items.
        seed: Seed of the resampling.

    Returns:
        Of each run, for each name in ``MEASURES``, the values on ``BLOCKS × RESAMPLES`` resamples.
    """
    generator = np.random.default_rng(seed)
    blocks = [
        [{name: measure(draws) for name, measure in MEASURES.items()} for draws in metrics.resampled(runs, generator)]
        for _ in range(BLOCKS)
    ]
    of_runs = zip(*blocks, strict=True)
    return [{name: np.concatenate([block[name] for block in of_run]) for name in MEASURES} for of_run in of_runs]


def bootstrap_test(difference: float, resampled: Array, differing: int) -> PairedTest:
    """Paired bootstrap (Efron and Tibshirani, 1993): interval and p-value from resampled differences.

    ``p = 2 · min(P(d* ≤ 0), P(d* ≥ 0))``, at most 1, each share counted with the observed sample, (1 + #) / (1 + R):
    twice the level at which the percentile interval begins to hold 0. Resamples of a few items that all differ alike
    hold no 0, however few they are, so p is no less than the sign-flip test could give, ``2 / 2^differing``.

    Args:
        difference: The difference as it was measured.
        resampled: The differences on resampled items, ``(R,)``.
        differing: On how many test items the methods' scores differ.
    """
    # A difference that is 0 up to rounding lies on both sides.
    below, above = np.sum(resampled <= ROUNDING), np.sum(resampled >= -ROUNDING)
    p = 2 * (1 + min(int(below), int(above))) / (1 + len(resampled))
    return PairedTest(difference, *_interval(resampled, difference), min(1.0, max(p, 2.0 ** (1 - differing))))


def _interval(resampled: Array, difference: float) -> tuple[float | None, float | None]:
    all_alike = abs(difference) > ROUNDING and np.ptp(resampled) <= ROUNDING
    return (None, None) if all_alike else percentile_interval(resampled, difference)


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
    means = map(float, differences.mean(axis=1))
    return [
        PairedTest(mean, *_interval(draws, mean), p)
        for mean, draws, p in zip(means, resampled.T, p_values, strict=True)
    ]


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
