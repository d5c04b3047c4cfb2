"""The head's projector, against its defining properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from himalaya_adapter.methods.himalaya_strict.protection import (
    from_upper_triangle,
    shrink_projector,
    upper_triangle,
)

WIDTH = 24
SEEDS = st.integers(0, 2**32 - 1)


def random_features(seed: int, rows: int, rank: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Rows ``(rows, WIDTH)`` in a random subspace of dimension ``rank``, with falling variances."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, WIDTH, generator=generator, dtype=torch.float64)
    return (left * torch.logspace(0, -2, rank, dtype=torch.float64) @ right).to(dtype)


def rank_of(projector: torch.Tensor) -> int:
    return round(projector.double().trace().item())


def assert_is_orthogonal_projector(projector: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(projector, projector.T, rtol=0, atol=tolerance)
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=tolerance)


@given(size=st.integers(1, 30), seed=SEEDS)
def test_a_symmetric_matrix_is_that_of_its_upper_triangle(size: int, seed: int) -> None:
    square = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    symmetric = square + square.T
    triangle = upper_triangle(symmetric)
    assert triangle.shape == (size * (size + 1) // 2,)
    assert torch.equal(from_upper_triangle(triangle), symmetric)


@given(seed=SEEDS, rank=st.integers(1, WIDTH), energy=st.sampled_from([0.5, 0.9, 0.99, 0.9999, 1 - 1e-9]))
def test_the_projector_loses_the_fewest_directions_that_hold_the_energy(seed, rank, energy) -> None:
    features = random_features(seed, 40, rank)
    moment = features.T @ features
    identity = torch.eye(WIDTH, dtype=torch.float64)
    projector = shrink_projector(identity, moment, energy)
    assert_is_orthogonal_projector(projector, 1e-12)
    left = (projector @ moment @ projector).trace()
    assert left <= (1 - energy) * moment.trace() * (1 + 1e-6) + 1e-12 * moment.trace()

    values = torch.linalg.eigvalsh(moment).clamp_min(0).flip(0)
    used = WIDTH - rank_of(projector)
    assert 1 <= used <= rank
    one_less = values.sum() - values[: used - 1].sum()  # what a projector with one more direction would leave
    assert one_less > (1 - energy) * moment.trace() * (1 - 1e-6)


@given(seed=SEEDS)
def test_a_stream_of_tasks_keeps_an_orthogonal_projector_that_only_shrinks(seed: int) -> None:
    """In 32 bits, as it is stored; every task's own bound still holds after all later ones."""
    projector, past = torch.eye(WIDTH), []
    for task in range(6):
        features = random_features(seed + task, 40, 3, torch.float32)
        before = rank_of(projector)
        projector = shrink_projector(projector, features.T @ features, 0.99)
        past.append(features)
        assert_is_orthogonal_projector(projector, 1e-5)
        assert before - 3 <= rank_of(projector) <= before
        for earlier in past:
            assert (earlier @ projector).square().sum() <= 0.01 * earlier.square().sum() * (1 + 1e-3)


def test_a_task_inside_protected_directions_costs_nothing() -> None:
    features = random_features(0, 40, 4)
    moment = features.T @ features
    once = shrink_projector(torch.eye(WIDTH, dtype=torch.float64), moment, 0.99)
    torch.testing.assert_close(shrink_projector(once, moment * 7, 0.99), once, rtol=0, atol=1e-12)


def test_an_empty_task_costs_nothing() -> None:
    identity = torch.eye(WIDTH)
    assert torch.equal(shrink_projector(identity, torch.zeros(WIDTH, WIDTH), 0.99), identity)


def test_a_full_projector_stays_empty() -> None:
    features = random_features(0, 60, WIDTH)
    nothing = shrink_projector(torch.eye(WIDTH, dtype=torch.float64), features.T @ features, 1 - 1e-12)
    assert rank_of(nothing) == 0
    again = shrink_projector(nothing, features.T @ features, 0.99)
    torch.testing.assert_close(again, torch.zeros_like(again), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_keep_the_precision_of_their_inputs(dtype: torch.dtype) -> None:
    features = random_features(0, 40, 3, dtype)
    assert shrink_projector(torch.eye(WIDTH, dtype=dtype), features.T @ features, 0.99).dtype == dtype
