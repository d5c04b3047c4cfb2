"""Atoms in few bits: what is read is what was written, to rounding; rows are independent; norms stay bounded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learning import random_atoms

from himalaya_adapter.methods.himalaya.dictionary import Dictionary
from himalaya_adapter.methods.packed_rows import GROUP, RowFormat

SEEDS = st.integers(0, 2**32 - 1)
BITS = st.integers(2, 8)


def any_atoms(seed: int, count: int, width: int) -> torch.Tensor:
    """Atoms of norm at most 1, smooth and spiky ones."""
    rows = random_atoms(seed, count, width, norm=1.0)
    power = 1 + 6 * torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))
    rows = torch.nn.functional.normalize(rows.sign() * (rows.abs() * width**0.5) ** power, dim=1)
    return rows * torch.rand(count, 1, generator=torch.Generator().manual_seed(seed + 1))


@given(seed=SEEDS, bits=BITS, width=st.integers(1, 130))
def test_what_is_read_is_what_was_written_to_rounding(seed: int, bits: int, width: int) -> None:
    row_format, atoms = RowFormat(width, bits), 0.5 * any_atoms(seed, 4, width)
    rows = row_format.pack(atoms)
    assert rows.shape == (4, row_format.row_bytes)
    assert rows.dtype == torch.uint8
    padded = torch.nn.functional.pad(atoms, (0, -width % GROUP)).unflatten(1, (-1, GROUP))
    step = (padded.amax(-1) - padded.amin(-1)) / (2**bits - 1)
    error = torch.nn.functional.pad(row_format.unpack(rows) - atoms, (0, -width % GROUP)).unflatten(1, (-1, GROUP))
    # Half a step, and what half precision takes from minimum and step.
    allowed = step / 2 + padded.abs().amax(-1) * 2**-8 + 1e-6
    assert (error.abs() <= allowed[..., None]).all()


@given(seed=SEEDS, bits=BITS, width=st.integers(1, 130), size=st.sampled_from([0.0, 1e-3, 1.0]))
def test_a_stored_atom_is_not_longer_than_one_and_is_stored_again_as_it_is(seed, bits, width, size) -> None:
    row_format = RowFormat(width, bits)
    rows = row_format.pack(size * any_atoms(seed, 4, width) / 0.999)
    atoms = row_format.unpack(rows)
    assert (atoms.norm(dim=1) <= 1.001).all()  # the source allows 1.05
    torch.testing.assert_close(row_format.unpack(row_format.pack(atoms)), atoms, rtol=0, atol=1e-5)


@given(seed=SEEDS, bits=BITS, width=st.integers(1, 70))
def test_no_row_depends_on_another(seed: int, bits: int, width: int) -> None:
    row_format, atoms = RowFormat(width, bits), any_atoms(seed, 5, width)
    rows = row_format.pack(atoms)
    for number in range(5):
        assert torch.equal(row_format.pack(atoms[number : number + 1])[0], rows[number])
        assert torch.equal(row_format.unpack(rows[number : number + 1])[0], row_format.unpack(rows)[number])


def test_core_and_slots_are_numbered_together_and_an_empty_slot_is_zero() -> None:
    dictionary = Dictionary(3, 4, RowFormat(64, 3), seed=0)
    assert not dictionary.atoms(torch.tensor([3, 4, 5, 6])).any()
    atom = random_atoms(0)[0]
    dictionary.elastic[2] = dictionary.row_format.pack(atom[None])[0]
    found = dictionary.atoms(torch.tensor([0, 1, 2, 5, 6]))
    torch.testing.assert_close(found[:3], dictionary.core_atoms())
    assert torch.cosine_similarity(found[3], atom, dim=0) > 0.97
    assert not found[4].any()
    assert dictionary.elastic.any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize(("count", "width"), [(24, 64), (24, 24), (24, 12), (1, 5)])
def test_the_core_is_orthonormal_where_there_is_room(count: int, width: int) -> None:
    core = Dictionary(count, 1, RowFormat(width, 8), seed=0).core_atoms()
    products = core @ core.T
    torch.testing.assert_close(products.diagonal(), torch.ones(count), rtol=0, atol=0.02)
    if count <= width:
        torch.testing.assert_close(products, torch.eye(count), rtol=0, atol=0.02)
    other = Dictionary(count, 1, RowFormat(width, 8), seed=1).core_atoms()
    assert not torch.equal(core, other)
