"""The dictionary and the rank-one update, against dense matrices in 64 bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from himalaya_adapter.methods.himalaya_strict.dictionary import Dictionary
from himalaya_adapter.methods.himalaya_strict.update import gram, rank_one_update, unit_coefficients

ATOMS = 12
SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = st.integers(1, 40)


def random_state(seed: int, width_in: int, width_out: int, scale: float, active: int) -> tuple[torch.Tensor, ...]:
    """Inputs ``(5, n)``, sparse coefficients ``(5, k)``, gains in (-1, 1) ``(5, 1)`` and the two sides' atoms."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(ATOMS, max(width_in, width_out), generator=generator, dtype=torch.float64)
    inputs = torch.randn(5, width_in, generator=generator, dtype=torch.float64)
    coefficients = torch.randn(5, ATOMS, generator=generator, dtype=torch.float64) * scale
    off = torch.rand(5, ATOMS, generator=generator).argsort(-1)[:, active:]
    coefficients.scatter_(1, off, 0.0)
    gain = torch.tanh(torch.randn(5, 1, generator=generator, dtype=torch.float64))
    return inputs, coefficients, gain, normalize(wide)[:, :width_in], normalize(wide)[:, :width_out]


def dense_update(coefficients: torch.Tensor, gain: torch.Tensor, atoms_in: torch.Tensor, atoms_out: torch.Tensor):
    """The matrices ``gain * r_out r_in^T``, formed densely: ``(5, m, n)``."""
    r_in, r_out = coefficients @ atoms_in, coefficients @ atoms_out
    r_in, r_out = r_in / r_in.norm(dim=-1, keepdim=True), r_out / r_out.norm(dim=-1, keepdim=True)
    return gain[..., None] * r_out[:, :, None] * r_in[:, None, :]


def update(x: torch.Tensor, u: torch.Tensor, gain: torch.Tensor, atoms_in: torch.Tensor, atoms_out: torch.Tensor):
    """The factored update of inputs ``(5, n)``: ``(5, m)``."""
    unit_in, unit_out = unit_coefficients(u, gram(atoms_in)), unit_coefficients(u, gram(atoms_out))
    return rank_one_update(x.to(gain.dtype) @ atoms_in.to(gain.dtype).T, gain, unit_in, unit_out, atoms_out)


@given(seed=SEEDS, width_in=WIDTHS, width_out=WIDTHS, exponent=st.integers(-6, 6), active=st.integers(1, ATOMS))
def test_the_update_is_the_dense_one_and_its_norm_is_the_gain(seed, width_in, width_out, exponent, active) -> None:
    inputs, u, gain, atoms_in, atoms_out = random_state(seed, width_in, width_out, 10.0**exponent, active)
    matrices = dense_update(u, gain, atoms_in, atoms_out)
    result = update(inputs, u, gain, atoms_in, atoms_out)
    torch.testing.assert_close(result, torch.einsum("bmn,bn->bm", matrices, inputs), rtol=1e-8, atol=1e-8)

    # The operator itself, read off by applying it to the unit vectors.
    units = torch.eye(width_in, dtype=torch.float64)
    columns = [update(unit.expand(5, -1), u, gain, atoms_in, atoms_out) for unit in units]
    operator = torch.stack(columns, dim=-1)
    spectral, frobenius = torch.linalg.matrix_norm(operator, 2), torch.linalg.matrix_norm(operator)
    torch.testing.assert_close(spectral, gain.abs()[:, 0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(frobenius, spectral, rtol=1e-8, atol=1e-10)
    assert (spectral <= 1 + 1e-12).all()


@given(seed=SEEDS, width=WIDTHS, exponent=st.integers(-12, 8))
def test_the_norm_bound_also_holds_in_32_bits_at_any_scale(seed: int, width: int, exponent: int) -> None:
    inputs, u, gain, atoms, _ = (t.float() for t in random_state(seed, width, width, 10.0**exponent, 3))
    result = update(inputs, u, gain, atoms, atoms)
    assert (result.norm(dim=-1) <= inputs.norm(dim=-1) * (1 + 1e-5)).all()


def test_a_token_without_coefficients_gets_no_update() -> None:
    inputs, u, gain, atoms_in, atoms_out = random_state(0, 16, 8, 1.0, 3)
    result = update(inputs, torch.zeros_like(u), gain, atoms_in, atoms_out)
    assert torch.equal(result, torch.zeros(5, 8, dtype=torch.float64))


@pytest.mark.parametrize("widths", [(9, 9), (9, 5)])
def test_gradients_are_those_of_finite_differences(widths: tuple[int, int]) -> None:
    inputs, u, gain, atoms_in, _atoms_out = random_state(0, *widths, 1.0, ATOMS)

    def of_shared_atoms(x: torch.Tensor, u: torch.Tensor, gain: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        return update(x, u, gain, atoms[:, : widths[0]], atoms[:, : widths[1]])

    assert torch.autograd.gradcheck(of_shared_atoms, [t.requires_grad_() for t in (inputs, u, gain, atoms_in.clone())])


@pytest.mark.parametrize("width", [24, 64, 576])
def test_core_atoms_are_orthonormal_and_all_atoms_have_length_one(width: int) -> None:
    dictionary = Dictionary(24, 16, width, seed=0)
    torch.testing.assert_close(dictionary.core @ dictionary.core.T, torch.eye(24), rtol=0, atol=1e-6)
    torch.testing.assert_close(dictionary.atoms().norm(dim=1), torch.ones(40), rtol=0, atol=1e-6)
    assert dictionary.atoms().shape == (40, width)
    assert dictionary.largest_norm() == pytest.approx(1, abs=1e-6)
    assert [name for name, _ in dictionary.named_parameters()] == ["elastic"]


def test_a_core_wider_than_the_space_still_has_unit_rows() -> None:
    torch.testing.assert_close(Dictionary(24, 16, 8, seed=0).core.norm(dim=1), torch.ones(24), rtol=0, atol=1e-6)


def test_the_seed_decides_the_dictionary() -> None:
    first, again, other = Dictionary(4, 2, 16, 7), Dictionary(4, 2, 16, 7), Dictionary(4, 2, 16, 8)
    assert torch.equal(first.atoms(), again.atoms())
    assert not torch.allclose(first.core, other.core)
    assert not torch.allclose(first.elastic, other.elastic)


def test_return_to_sphere_keeps_the_direction() -> None:
    dictionary = Dictionary(4, 2, 16, 0)
    direction = dictionary.elastic.detach().clone()
    with torch.no_grad():
        dictionary.elastic.mul_(3.0)
    assert dictionary.largest_norm() == pytest.approx(3, abs=1e-5)
    dictionary.return_to_sphere(torch.ones(len(dictionary.elastic), dtype=torch.bool))
    torch.testing.assert_close(dictionary.elastic.detach(), direction)


def test_atoms_that_did_not_move_are_left_to_the_bit() -> None:
    dictionary = Dictionary(4, 2, 16, 0)
    with torch.no_grad():
        dictionary.elastic.mul_(3.0)
    before = dictionary.elastic.detach().clone()
    dictionary.return_to_sphere(torch.tensor([True, False]))
    assert dictionary.elastic.detach()[0].norm() == pytest.approx(1, abs=1e-6)
    assert torch.equal(dictionary.elastic.detach()[1], before[1])


@given(seed=SEEDS, width=WIDTHS, exponent=st.integers(-6, 6), active=st.integers(1, ATOMS))
def test_unit_coefficients_give_a_unit_vector_of_the_same_direction(seed, width, exponent, active) -> None:
    _, u, _, atoms, _ = random_state(seed, width, width, 10.0**exponent, active)
    vectors = unit_coefficients(u, gram(atoms)) @ atoms
    torch.testing.assert_close(vectors, normalize(u @ atoms), rtol=1e-6, atol=1e-6)


def test_the_gram_matrix_of_16_bit_atoms_is_accumulated_in_32() -> None:
    atoms = normalize(torch.randn(5, 4096, generator=torch.Generator().manual_seed(0))).bfloat16()
    assert gram(atoms).dtype == torch.float32
    torch.testing.assert_close(gram(atoms).double(), atoms.double() @ atoms.double().T, rtol=0, atol=1e-5)


def test_16_bit_atoms_keep_the_norm_within_their_rounding() -> None:
    inputs, u, gain, atoms, _ = random_state(0, 64, 64, 1.0, 3)
    atoms = atoms.bfloat16()
    result = update(inputs.bfloat16(), u.float(), torch.ones_like(gain).float(), atoms, atoms)
    assert result.dtype == torch.bfloat16
    assert (result.float().norm(dim=-1) <= inputs.norm(dim=-1) * (1 + 2**-6)).all()
