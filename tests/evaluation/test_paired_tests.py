"""Paired tests against known results: hand-worked cases, constructed shifts, and their error rate without a shift."""

import math

import numpy as np
import pytest

from himalaya_adapter.evaluation import metrics
from himalaya_adapter.evaluation.intervals import bootstrap_weights
from himalaya_adapter.evaluation.metrics import bootstrap_retained_accuracy
from himalaya_adapter.evaluation.paired_tests import (
    MEASURES,
    ScoredRun,
    bootstrap_test,
    exact_sign_flip_p,
    holm,
    item_tests,
    resampled_measures,
)

TASKS, ITEMS = 3, 40


def scored_run(seed: int, *, hardness: np.ndarray, shift: float = 0.0, forgets: float = 0.0) -> ScoredRun:
    """A run whose answers to an item are right with a probability that depends on the item (the same for all runs)."""
    random = np.random.default_rng(seed)
    items = [
        [(random.random(ITEMS) < hardness[j] + shift - forgets * (i - j)).astype(float).tolist() for j in range(i + 1)]
        for i in range(TASKS)
    ]
    return ScoredRun([[float(np.mean(cell)) for cell in row] for row in items], items)


def at_the_end(run: ScoredRun) -> np.ndarray:
    """Scores of the items of the first task after the last one, ``(1, items)``."""
    return np.array([run.item_scores[2][0]])


def hardness(seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 5]).choice([0.3, 0.9], size=(TASKS, ITEMS))


def test_run_against_itself() -> None:
    run = scored_run(1, hardness=hardness(0), forgets=0.1)
    first, second = resampled_measures([run, run], seed=0)
    for name in MEASURES:
        test = bootstrap_test(0.0, first[name] - second[name], 0)
        assert (test.difference, test.interval, test.p) == (0.0, (0.0, 0.0), 1.0)
    (test,) = item_tests(np.zeros((1, ITEMS)), seed=0)
    assert (test.difference, test.interval, test.p) == (0.0, (0.0, 0.0), 1.0)


def test_resampled_measures_are_those_of_resampled_matrices() -> None:
    """The mean of many resamples is the measure itself; intervals agree with those of one run's own bootstrap."""
    run = scored_run(2, hardness=hardness(1), forgets=0.15)
    (resampled,) = resampled_measures([run], seed=3)
    for name in ("retained_accuracy_auc", "average_accuracy", "learning_accuracy"):
        assert resampled[name].mean() == pytest.approx(MEASURES[name](run.matrix), abs=0.002), name
    # The best of several rows is biased upwards by resampling, as a maximum of noisy numbers is.
    assert 0 <= resampled["forgetting"].mean() - metrics.forgetting(run.matrix) < 0.02
    own, _ = bootstrap_retained_accuracy(run.matrix, run.item_scores, seed=9)
    test = bootstrap_test(0.0, resampled["retained_accuracy_auc"], TASKS * ITEMS)
    assert test.interval == pytest.approx((0.0, own[1]), abs=0.01)  # widened to hold the 0 that was given


def test_each_resample_is_the_measure_of_a_resampled_matrix() -> None:
    """By brute force, with a row that a task's answers did not change in."""
    items = scored_run(2, hardness=hardness(1), forgets=0.15).item_scores
    items[1][0] = items[0][0]
    run = ScoredRun([[float(np.mean(cell)) for cell in row] for row in items], items)
    (resampled,) = resampled_measures([run], seed=3)
    generator = np.random.default_rng(3)
    weights = [bootstrap_weights(ITEMS, generator) / ITEMS for _ in range(TASKS)]
    for number in range(50):
        matrix = [[float(weights[j][number] @ cell) for j, cell in enumerate(row)] for row in items]
        for name, measure in MEASURES.items():
            assert resampled[name][number] == pytest.approx(measure(matrix), abs=1e-12), name


def test_rows_that_were_not_measured_are_not_read() -> None:
    whole = scored_run(3, hardness=hardness(2), forgets=0.1)
    last = TASKS - 1
    sparse = ScoredRun(
        [[cell if i in (0, last, j) else None for j, cell in enumerate(row)] for i, row in enumerate(whole.matrix)],
        [
            [cell if i in (0, last, j) else None for j, cell in enumerate(row)]
            for i, row in enumerate(whole.item_scores)
        ],
    )
    (resampled,) = resampled_measures([sparse], seed=0)
    assert resampled["retained_accuracy_auc"].mean() == pytest.approx(
        (whole.matrix[0][0] + np.mean(whole.matrix[-1])) / 2, abs=0.003
    )
    assert resampled["learning_accuracy"].mean() == pytest.approx(metrics.learning_accuracy(whole.matrix), abs=0.003)


def test_shift_is_found_and_its_sign_is_right() -> None:
    better = scored_run(4, hardness=hardness(3), forgets=0.0)
    worse = scored_run(5, hardness=hardness(3), shift=-0.3, forgets=0.35)
    first, second = resampled_measures([better, worse], seed=0)
    for name, measure in MEASURES.items():
        difference = measure(better.matrix) - measure(worse.matrix)
        test = bootstrap_test(difference, first[name] - second[name], TASKS * ITEMS)
        assert test.p < 0.01, name
        assert test.interval is not None
        low, high = test.interval
        assert low <= difference <= high
        assert (high < 0) if name == "forgetting" else (low > 0), name
    (test,) = item_tests(at_the_end(better) - at_the_end(worse), seed=0)
    assert test.interval is not None
    assert test.interval[0] > 0
    assert test.p < 0.001


def test_pairing_sharpens_the_test() -> None:
    """Two runs that differ on three hard items only: hopeless between independent samples, clear between pairs."""
    right = np.array([1.0] * 40 + [0.0] * 60)
    better = right.copy()
    better[40:52] = 1.0
    (test,) = item_tests((better - right)[None], seed=0)
    assert test.p == 2 / 2**12  # all twelve items that differ point one way
    unpaired = math.sqrt(2 * 0.46 * 0.54 / 100)  # standard error of a difference of two independent shares
    assert test.difference / unpaired < 1.96


@pytest.mark.parametrize("items", [1, 3, 200])
def test_items_that_all_differ_alike_give_no_interval(items: int) -> None:
    """Every resample of them is the same; one item that differs less, and there is an interval."""
    (test,) = item_tests(np.full((1, items), 0.5), seed=0)
    assert (test.difference, test.interval) == (0.5, None)
    assert test.p == pytest.approx(2.0 ** (1 - items), abs=2e-4)
    (test,) = item_tests(np.array([[0.5] * items + [0.25]]), seed=0)
    assert test.interval is not None
    assert test.interval[0] < test.difference < test.interval[1]
    test = bootstrap_test(0.5, np.full(1000, 0.5), items)
    assert (test.difference, test.interval) == (0.5, None)


def test_exact_sign_flip_by_hand() -> None:
    # Sums of ±1 ±2 ±3: |sum| is 6 twice, 4 twice, 2 twice, 0 twice. Observed 1 + 2 − 3 = 0, 3 + 2 − 1 = 4, 6.
    assert exact_sign_flip_p(np.array([1.0, 2.0, -3.0])) == 1.0
    assert exact_sign_flip_p(np.array([-1.0, 2.0, 3.0])) == 0.5
    assert exact_sign_flip_p(np.array([1.0, 0.0, 2.0, 3.0, 0.0])) == 0.25
    assert exact_sign_flip_p(np.zeros(5)) == 1.0


def test_drawn_signs_agree_with_the_binomial_test() -> None:
    """Of 20 items that differ by 1, 15 one way: P(|X − 10| ≥ 5), X binomial(20, ½), is 0.0414."""
    differences = np.array([1.0] * 15 + [-1.0] * 5 + [0.0] * 30)
    exact = 2 * sum(math.comb(20, k) for k in range(15, 21)) / 2**20
    (test,) = item_tests(differences[None], seed=1)
    assert exact == pytest.approx(0.0414, abs=1e-4)
    assert test.p == pytest.approx(exact, abs=0.008)  # four standard errors of 10 000 draws


@pytest.mark.slow
def test_error_rate_without_a_difference() -> None:
    """Two methods that are equally good on every item are told apart in 5 % of the cases, not more."""
    repetitions = 150
    rejected = dict.fromkeys(["one task", *MEASURES], 0)
    covered = dict.fromkeys(MEASURES, 0)
    for repetition in range(repetitions):
        same = hardness(repetition)
        runs = [scored_run(1000 + 2 * repetition + k, hardness=same, forgets=0.05) for k in range(2)]
        first, second = resampled_measures(runs, seed=repetition)
        for name, measure in MEASURES.items():
            test = bootstrap_test(
                measure(runs[0].matrix) - measure(runs[1].matrix), first[name] - second[name], TASKS * ITEMS
            )
            rejected[name] += test.p <= 0.05
            covered[name] += test.interval is not None and test.interval[0] <= 0 <= test.interval[1]
        (test,) = item_tests(at_the_end(runs[0]) - at_the_end(runs[1]), seed=repetition)
        rejected["one task"] += test.p <= 0.05
    for name, count in rejected.items():
        assert count / repetitions <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions), (name, rejected)
    for name, count in covered.items():
        assert count / repetitions >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / repetitions), (name, covered)


def test_holm_by_hand() -> None:
    # Sorted: 0.005 · 4 = 0.02, 0.01 · 3 = 0.03, 0.03 · 2 = 0.06, 0.04 · 1 = 0.04 raised to the 0.06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
