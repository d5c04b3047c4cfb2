"""What is remembered of losses, and the combination that stands in for an evicted atom, against dense solutions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learning import random_atoms

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.methods.fisher import RESIDUALS
from himalaya_adapter.methods.himalaya.consolidation import FisherMemory

SEEDS = st.integers(0, 2**31)
SMALL = HimalayaConfig(elastic_atoms=4, atoms_per_task=2, active_atoms=2, evict=True)


def remembering(seed: int, gradients: int, width: int) -> tuple[FisherMemory, torch.Tensor]:
    """A memory that has seen random gradients, and the dense metric that follows from it, in 64 bits."""
    memory = FisherMemory(SMALL, width)
    for gradient in random_atoms(seed, gradients, width):
        memory.observe(torch.stack([gradient, 0.1 * gradient]))
    rows = memory.unit_residuals().double()
    return memory, rows.T @ rows / max(1, len(rows)) + torch.eye(width).double() / width


@given(seed=SEEDS, gradients=st.integers(0, 20), candidates=st.integers(1, 8), width=st.integers(9, 30))
def test_the_stand_in_is_the_least_squares_solution_in_the_fisher_metric(seed, gradients, candidates, width) -> None:
    memory, metric = remembering(seed, gradients, width)
    atom, others = random_atoms(seed + 1, 1, width)[0], random_atoms(seed + 2, candidates, width)
    numbers, weights = memory.stand_in(atom, others, most=8, steps=20)
    assert sorted(numbers.tolist()) == list(range(candidates))
    root = torch.linalg.cholesky(metric)
    wanted = torch.linalg.lstsq(root.T @ others.double().T, (root.T @ atom.double())[:, None]).solution[:, 0]
    torch.testing.assert_close(weights, wanted[numbers], rtol=1e-4, atol=1e-5)
    error = atom.double() - wanted @ others.double()
    share = 1 - (error @ metric @ error) / (atom.double() @ metric @ atom.double())
    stand_in = weights.float() @ others[numbers]
    assert memory.share(atom, stand_in) == pytest.approx(share.item(), abs=1e-4)
    assert memory.share(atom, -stand_in) <= 1e-6


@given(seed=SEEDS, steps=st.integers(1, 5))
def test_few_terms_and_few_steps_help_less_and_never_harm(seed: int, steps: int) -> None:
    memory, _ = remembering(seed, 10, 20)
    atom, others = random_atoms(seed + 1, 1, 20)[0], random_atoms(seed + 2, 15, 20)

    def share(most: int, steps: int) -> float:
        numbers, weights = memory.stand_in(atom, others, most, steps)
        return memory.share(atom, weights.float() @ others[numbers])

    shares = [share(most, steps) for most in (1, 4, 8)]
    assert shares[0] > 0
    assert all(one <= share(15, 30) + 1e-6 for one in shares)


def test_the_candidate_that_has_most_of_the_atom_alone_is_chosen_first() -> None:
    memory, _ = remembering(0, 0, 6)
    atom = torch.tensor([3.0, 2.0, 1.0, 0, 0, 0])
    numbers, weights = memory.stand_in(atom, torch.eye(6).flip(0), most=2, steps=20)
    assert numbers.tolist() == [5, 4]
    torch.testing.assert_close(weights, torch.tensor([3.0, 2.0]).double())
    assert memory.share(atom, torch.tensor([3.0, 2.0, 0, 0, 0, 0])) == pytest.approx(13 / 14)


def test_the_steepest_row_of_a_gradient_is_remembered_as_a_direction_and_the_oldest_is_forgotten() -> None:
    memory = FisherMemory(SMALL, 8)
    for number in range(RESIDUALS + 3):
        gradient = torch.zeros(2, 8)
        gradient[0, number % 8], gradient[1, 0] = 7.0, 1e-3
        memory.observe(gradient)
    assert memory.residuals.dtype == torch.int8
    assert int(memory.seen) == RESIDUALS + 3
    rows = memory.unit_residuals()
    assert rows.shape == (RESIDUALS, 8)
    torch.testing.assert_close(rows[:5], torch.eye(8)[[0, 1, 2, 3, 4]])
    assert memory.energy[0] > 1e6 * memory.energy[1]
    before = memory.residuals.clone()
    memory.observe(torch.zeros(2, 8))
    assert torch.equal(memory.residuals, before)
