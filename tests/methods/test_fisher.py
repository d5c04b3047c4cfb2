"""The projection in the Fisher metric of residuals, against dense solutions."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from himalaya_adapter.methods.fisher import fisher_metric_product, fisher_projection

SEEDS = st.integers(0, 2**32 - 1)


def random_rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_metric(residuals: torch.Tensor) -> torch.Tensor:
    width = residuals.shape[1]
    return residuals.T @ residuals / max(1, len(residuals)) + torch.eye(width, dtype=torch.float64) / width


@given(seed=SEEDS, others=st.integers(1, 20), residuals=st.integers(0, 40), width=st.integers(2, 40))
def test_every_step_of_the_projection_helps_and_the_last_is_the_dense_solution(seed, others, residuals, width) -> None:
    metric_rows = normalize(random_rows(seed, residuals, width), dim=1)
    metric = dense_metric(metric_rows)
    atoms = normalize(random_rows(seed + 1, others + 1, width), dim=1)
    atom, rest = atoms[0], atoms[1:]
    torch.testing.assert_close(fisher_metric_product(rest, metric_rows), rest @ metric)
    energy = atom @ metric @ atom
    errors = []
    for steps in (*range(21), 500):
        weights, survives = fisher_projection(atom, rest, metric_rows, steps)
        error = atom - weights @ rest
        errors.append((error @ metric @ error).item())
        assert 0 <= survives <= 1
        assert survives == pytest.approx(1 - errors[-1] / energy.item(), abs=1e-9)
    assert errors[0] == pytest.approx(energy.item())  # no step, no stand-in
    assert all(after <= before + 1e-12 * errors[0] for before, after in pairwise(errors))
    if others < width:
        best = torch.linalg.solve(rest @ metric @ rest.T, rest @ metric @ atom)
        left = atom - best @ rest
        assert errors[-1] == pytest.approx((left @ metric @ left).item(), abs=1e-6 * errors[0])


def test_an_atom_that_the_others_express_survives_whole_and_an_orthogonal_one_not_at_all() -> None:
    others, none = torch.eye(6, dtype=torch.float64)[:4], torch.zeros(0, 6, dtype=torch.float64)
    weights, survives = fisher_projection(torch.tensor([1.0, -2, 0, 3, 0, 0]).double(), others, none, 20)
    torch.testing.assert_close(weights, torch.tensor([1.0, -2, 0, 3]).double())
    assert survives == pytest.approx(1)
    weights, survives = fisher_projection(torch.eye(6, dtype=torch.float64)[5], others, none, 20)
    assert survives == 0
    assert not weights.any()


def test_an_atom_of_zeros_is_reproduced_by_nothing_at_all() -> None:
    """Training that has diverged leaves such atoms; dividing by their energy was a traceback."""
    others, none = torch.eye(6, dtype=torch.float64)[:4], torch.zeros(0, 6, dtype=torch.float64)
    weights, survives = fisher_projection(torch.zeros(6, dtype=torch.float64), others, none, 20)
    assert survives == 1
    assert not weights.any()
