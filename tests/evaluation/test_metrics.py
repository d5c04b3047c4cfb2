"""The measures of the accuracy matrix: cases by hand, relations that hold for every matrix, and the bootstrap."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from himalaya_adapter.evaluation import metrics

HAND = [[0.8], [0.6, 0.5], [0.4, 0.7, 0.9]]


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (metrics.average_accuracy, (0.4 + 0.7 + 0.9) / 3),
        (metrics.learning_accuracy, (0.8 + 0.5 + 0.9) / 3),
        (metrics.backward_transfer, ((0.4 - 0.8) + (0.7 - 0.5)) / 2),
        (metrics.forgetting, ((0.8 - 0.4) + (0.5 - 0.7)) / 2),
        (metrics.average_anytime_accuracy, (0.8 + 0.55 + 2 / 3) / 3),
        (metrics.retained_accuracy_auc, ((0.8 + 0.55) / 2 + (0.55 + 2 / 3) / 2) / 2),
        (metrics.retention, (0.6 / 0.8 + (0.4 / 0.8 + 1.0) / 2) / 2),
    ],
)
def test_by_hand(measure, expected: float) -> None:
    assert measure(HAND) == pytest.approx(expected)
    # What lies right of the diagonal (scores before a task was learnt) does not count.
    assert measure([[0.8, 0.1, 0.2], [0.6, 0.5, 0.3], [0.4, 0.7, 0.9]]) == pytest.approx(expected)
    assert isinstance(measure(HAND), float)


def test_forgetting_starts_from_the_best_score_not_the_first() -> None:
    rises_then_falls = [[0.2], [0.9, 0.5], [0.4, 0.5, 0.5]]
    assert metrics.forgetting(rises_then_falls) == pytest.approx(((0.9 - 0.4) + 0.0) / 2)
    assert metrics.backward_transfer(rises_then_falls) == pytest.approx(((0.4 - 0.2) + 0.0) / 2)


def test_one_task() -> None:
    one = [[0.7]]
    for measure in (
        metrics.average_accuracy,
        metrics.learning_accuracy,
        metrics.average_anytime_accuracy,
        metrics.retained_accuracy_auc,
    ):
        assert measure(one) == 0.7
    assert metrics.backward_transfer(one) == metrics.forgetting(one) == 0.0
    assert metrics.retention(one) == 1.0


def test_a_task_that_learnt_nothing_has_nothing_to_lose() -> None:
    assert metrics.retention([[0.0], [0.0, 0.5]]) == 1.0


# Of five rows the first, the third and the last are measured; of the others only the diagonal.
GAPS = [[0.8], [None, 0.5], [0.6, 0.7, 0.9], [None, None, None, 0.4], [0.4, 0.9, 0.5, 0.4, 1.0]]


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (metrics.average_accuracy, (0.4 + 0.9 + 0.5 + 0.4 + 1.0) / 5),
        (metrics.learning_accuracy, (0.8 + 0.5 + 0.9 + 0.4 + 1.0) / 5),
        (metrics.backward_transfer, ((0.4 - 0.8) + (0.9 - 0.5) + (0.5 - 0.9) + 0.0) / 4),
        (metrics.forgetting, ((0.8 - 0.4) + (0.7 - 0.9) + (0.9 - 0.5) + 0.0) / 4),
        (metrics.average_anytime_accuracy, (0.8 + 2.2 / 3 + 3.2 / 5) / 3),
        (metrics.retained_accuracy_auc, (2 * (0.8 + 2.2 / 3) / 2 + 2 * (2.2 / 3 + 3.2 / 5) / 2) / 4),
        (metrics.retention, ((0.6 / 0.8 + 1.0) / 2 + (0.4 / 0.8 + 1.0 + 0.5 / 0.9 + 1.0) / 4) / 2),
    ],
)
def test_rows_that_are_not_measured_by_hand(measure, expected: float) -> None:
    assert metrics.measured_rows(GAPS) == [0, 2, 4]
    assert measure(GAPS) == pytest.approx(expected)


def test_distances_between_measured_rows_count() -> None:
    # R = 0.8 after the first task, 0.5 after the fourth, 0.6 after the fifth.
    a = [[0.8], [None, 0.1], [None, None, 0.1], [0.5] * 4, [0.6] * 5]
    assert metrics.retained_accuracy(a) == pytest.approx([0.8, 0.5, 0.6])
    assert metrics.retained_accuracy_auc(a) == pytest.approx((3 * 0.65 + 1 * 0.55) / 4)


@pytest.mark.parametrize(
    ("rows", "tasks", "expected"),
    [
        ("all", 4, [0, 1, 2, 3]),
        ("1", 3, [0, 1, 2]),
        ("last", 25, [0, 24]),
        ("last", 1, [0]),
        ("5", 25, [0, 4, 9, 14, 19, 24]),
        ("10", 25, [0, 9, 19, 24]),
        ("100", 3, [0, 2]),
    ],
)
def test_rows_to_measure(rows: str, tasks: int, expected: list[int]) -> None:
    assert metrics.rows_to_measure(rows, tasks) == expected


def without(a: list[list[Any]], kept: list[int]) -> list[list[Any]]:
    """The matrix with only the diagonal of all other rows."""
    return [[score if i in kept or i == j else None for j, score in enumerate(row)] for i, row in enumerate(a)]


@pytest.mark.parametrize("hole", [(2, 1), (1, 1)])
def test_the_last_row_and_the_diagonal_must_be_there(hole: tuple[int, int]) -> None:
    a: list[list[float | None]] = [list(row) for row in HAND]
    a[hole[0]][hole[1]] = None
    with pytest.raises(ValueError, match="must be measured"):
        metrics.retained_accuracy_auc(a)


@pytest.mark.parametrize(("matrix", "message"), [([], "no rows"), ([[0.5], [0.5]], "row 1 .* has 1 entries")])
def test_malformed_matrix(matrix: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.average_accuracy(matrix)


scores = st.floats(0, 1)
matrices = st.integers(1, 6).flatmap(
    lambda t: st.tuples(*[st.lists(scores, min_size=i + 1, max_size=i + 1) for i in range(t)])
)


@given(matrices)
def test_relations(a) -> None:
    tolerance = 1e-9
    assert metrics.forgetting(a) >= -metrics.backward_transfer(a) - tolerance
    if len(a) > 1:
        first_tasks_at_end = np.mean(a[-1][:-1])
        first_tasks_learnt = np.mean([a[j][j] for j in range(len(a) - 1)])
        assert metrics.backward_transfer(a) == pytest.approx(first_tasks_at_end - first_tasks_learnt)
    retained = metrics.retained_accuracy(a)
    assert retained[-1] == pytest.approx(metrics.average_accuracy(a))
    for value in (metrics.average_anytime_accuracy(a), metrics.retained_accuracy_auc(a)):
        assert min(retained) - tolerance <= value <= max(retained) + tolerance
    assert 0.0 <= metrics.retention(a) <= 1.0


@given(matrices, st.sampled_from(["last", "2", "3"]))
def test_what_the_diagonal_and_the_last_row_hold_does_not_change(a, rows: str) -> None:
    kept = metrics.rows_to_measure(rows, len(a))
    fewer = without(a, kept)
    for measure in (metrics.average_accuracy, metrics.learning_accuracy, metrics.backward_transfer):
        assert measure(fewer) == measure(a)
    assert metrics.forgetting(fewer) <= metrics.forgetting(a) + 1e-9
    assert metrics.measured_rows(fewer) == kept
    whole = metrics.retained_accuracy(a)
    assert metrics.retained_accuracy(fewer).tolist() == [whole[i] for i in kept]


@given(st.integers(1, 6), scores)
def test_a_model_that_never_changes(tasks: int, score: float) -> None:
    a = [[score] * (i + 1) for i in range(tasks)]
    for measure in (metrics.average_accuracy, metrics.learning_accuracy, metrics.retained_accuracy_auc):
        assert measure(a) == pytest.approx(score)
    assert metrics.forgetting(a) == pytest.approx(0, abs=1e-12)
    assert metrics.retention(a) == pytest.approx(1)


def simulated_items(generator: np.random.Generator, tasks: int, items: int) -> list[list[np.ndarray]]:
    return [[(generator.random(items) < 0.7).astype(float) for _ in range(i + 1)] for i in range(tasks)]


def means(item_scores: list[list[np.ndarray]]) -> list[list[float]]:
    return [[float(cell.mean()) for cell in row] for row in item_scores]


def test_bootstrap_interval_holds_the_score_and_repeats_with_its_seed() -> None:
    item_scores = simulated_items(np.random.default_rng(1), tasks=4, items=50)
    a = means(item_scores)
    intervals = metrics.bootstrap_retained_accuracy(a, item_scores, seed=3)
    assert intervals == metrics.bootstrap_retained_accuracy(a, item_scores, seed=3)
    assert intervals != metrics.bootstrap_retained_accuracy(a, item_scores, seed=4)
    auc, rows = intervals
    assert auc[0] < metrics.retained_accuracy_auc(a) < auc[1]
    for (low, high), point in zip(rows, metrics.retained_accuracy(a), strict=True):
        assert 0 <= low < point < high <= 1


def test_bootstrap_width_is_the_normal_approximations() -> None:
    item_scores = [[np.repeat([0.0, 1.0], [200, 200])]]
    auc, (row,) = metrics.bootstrap_retained_accuracy([[0.5]], item_scores, seed=0)
    half_width = 1.96 * np.sqrt(0.25 / 400)
    assert auc == row
    assert auc == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.008)


def test_bootstrap_resamples_a_task_with_one_index_in_all_rows() -> None:
    # Row 2 is right on task 1 exactly where row 1 is wrong, so their sum is the same in every resample.
    right = np.repeat([0.0, 1.0], [30, 30])
    always = np.ones(60)
    item_scores = [[right], [1 - right, always]]
    auc, rows = metrics.bootstrap_retained_accuracy(means(item_scores), item_scores, seed=0)
    # AUC = (a11 + (a21 + 1) / 2) / 2 with a21 = 1 − a11, that is 1/2 + a11 / 4.
    low, high = rows[0]
    assert auc == pytest.approx((0.5 + low / 4, 0.5 + high / 4))


def test_bootstrap_of_scores_that_are_not_item_means_is_centred_on_them() -> None:
    item_scores = simulated_items(np.random.default_rng(2), tasks=2, items=80)
    (low, high), _ = metrics.bootstrap_retained_accuracy([[0.4], [0.4, 0.4]], item_scores, seed=0)
    assert low < 0.4 < high
    assert high - low < 0.3


def test_bootstrap_reads_only_the_measured_rows() -> None:
    item_scores = simulated_items(np.random.default_rng(3), tasks=5, items=40)
    a = means(item_scores)
    _, whole = metrics.bootstrap_retained_accuracy(a, item_scores, seed=0)
    only_measured = without(item_scores, [0, 2, 4])
    auc, fewer = metrics.bootstrap_retained_accuracy(without(a, [0, 2, 4]), only_measured, seed=0)
    assert fewer == [whole[0], whole[2], whole[4]]
    assert auc[0] < metrics.retained_accuracy_auc(without(a, [0, 2, 4])) < auc[1]
