"""The anchored update against dense matrices, its bounds, its start at nothing, and the codes of the layers."""

import pytest
import torch
from families import random_tokens
from hypothesis import given
from hypothesis import strategies as st
from learning import PLACEMENTS, attached, logits_of
from peft import PeftModel
from torch import nn

from himalaya_adapter.methods.himalaya import HimalayaConfig, StreamLayer
from himalaya_adapter.methods.himalaya.update import (
    bounded,
    edited,
    layer_anchors,
    layer_codes,
    scaled,
    unscaled,
    update_vectors,
)

SEEDS = st.integers(0, 2**32 - 1)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(seed: int, layers: int = 5, atoms: int = 6, width: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Anchors and codes in 64 bits."""
    core = torch.linalg.qr(random(seed, width, 4)).Q.T
    return layer_anchors(core, layers, seed), layer_codes(layers, atoms, min(3, atoms), seed).double()


def dense(anchor: torch.Tensor, code: torch.Tensor, atoms: torch.Tensor, bound: float) -> torch.Tensor:
    """The matrix ``(d, d)`` of one layer's update, from sums over single atoms."""
    move = sum(weight * atom for weight, atom in zip(code, atoms, strict=True))
    write = (anchor + move) / (anchor + move).norm()
    read = anchor - move - write
    if read.norm() > bound:
        read = read / read.norm() * bound
    return torch.outer(write, read)


@pytest.mark.parametrize("bound", [0.3, 1.0, 2.0])
def test_a_layer_adds_the_dense_matrix_times_its_output(bound: float) -> None:
    anchors, codes = made(0)
    atoms, hidden = random(1, 6, 20), random(2, 3, 7, 20)
    write, read = update_vectors(anchors, codes, atoms, bound)
    for layer in range(5):
        matrix = dense(anchors[layer], codes[layer], atoms, bound)
        wanted = hidden + torch.einsum("ij,bsj->bsi", matrix, hidden)
        torch.testing.assert_close(edited(hidden, write[layer], read[layer][:, None]), wanted, rtol=1e-12, atol=1e-12)


def test_each_row_of_a_batch_may_have_atoms_of_its_own() -> None:
    anchors, codes = made(0)
    atoms, hidden = random(1, 3, 6, 20), random(2, 3, 7, 20)
    write, read = update_vectors(anchors, codes, atoms, 2.0)
    together = edited(hidden, write[:, 2, None], read[:, 2, :, None])
    for row in range(3):
        wanted = hidden[row] + hidden[row] @ dense(anchors[2], codes[2], atoms[row], 2.0).T
        torch.testing.assert_close(together[row], wanted, rtol=1e-12, atol=1e-12)


def test_the_vectors_have_the_derivative_that_they_claim() -> None:
    anchors, codes = made(3, layers=3, atoms=4, width=7)
    atoms = (0.4 * random(4, 4, 7)).requires_grad_()
    for bound in (0.5, 2.0):  # some reads are scaled back, and none
        assert torch.autograd.gradcheck(lambda one, bound=bound: update_vectors(anchors, codes, one, bound), atoms)
    assert torch.autograd.gradcheck(bounded, (2 * random(5, 3, 4)).requires_grad_())


@given(
    seed=SEEDS,
    size=st.sampled_from([0.0, 1e-30, 1e-6, 1e-2, 1.0, 1e3, 1e12]),
    bound=st.floats(0.01, 2),
    atoms=st.integers(1, 12),
    width=st.integers(2, 70),
)
def test_whatever_the_atoms_are_the_update_is_bounded(seed, size, bound, atoms, width) -> None:
    core = torch.nn.functional.normalize(random(seed, 4, width, dtype=torch.float32), dim=1)
    anchors, codes = layer_anchors(core, 3, seed), layer_codes(3, atoms, min(3, atoms), seed)
    raw = size * random(seed + 1, atoms, width, dtype=torch.float32)
    assert (scaled(raw).norm(dim=1) <= 1 + 1e-6).all()
    for one in (raw, scaled(raw)):
        write, read = update_vectors(anchors, codes, one, bound)
        assert ((write.norm(dim=1) - 1).abs() < 1e-5).all()
        assert (read.norm(dim=1) <= bound * (1 + 1e-5)).all()
        hidden = random(seed + 2, 4, 5, width, dtype=torch.float32)
        change = edited(hidden, write[0], read[0][:, None]) - hidden
        assert (change.norm(dim=-1) <= bound * hidden.norm(dim=-1) * (1 + 1e-4) + 1e-5).all()


@given(seed=SEEDS, rows=st.integers(1, 3))
def test_without_atoms_the_update_is_exactly_nothing_and_its_derivative_is_not(seed: int, rows: int) -> None:
    anchors, codes = (one.float() for one in made(seed % 2**31))
    atoms = torch.zeros(rows, 6, 20, requires_grad=True)
    write, read = update_vectors(anchors, codes, atoms, 1.0)
    assert not read.any()
    hidden = random(seed, rows, 4, 20, dtype=torch.float32)
    assert torch.equal(edited(hidden, write[:, 1, None], read[:, 1, :, None]), hidden)
    (read * random(seed + 1, rows, 5, 20, dtype=torch.float32)).sum().backward()
    moving = codes.abs().sum(0) > 0
    assert (atoms.grad[:, moving].norm(dim=-1) > 1e-3).all()


@given(seed=SEEDS, width=st.integers(2, 100), size=st.floats(1e-3, 1))
def test_a_parameter_stands_for_its_atoms(seed: int, width: int, size: float) -> None:
    atoms = bounded(size * random(seed, 3, width))
    torch.testing.assert_close(scaled(unscaled(atoms)), atoms, rtol=1e-9, atol=1e-12)


@given(layers=st.integers(1, 40), atoms=st.integers(1, 24), active=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_every_atom_acts_in_as_many_layers_as_any_other_to_one(layers, atoms, active, seed) -> None:
    active = min(active, atoms)
    codes = layer_codes(layers, atoms, active, seed)
    assert torch.equal(codes, layer_codes(layers, atoms, active, seed))
    assert ((codes != 0).sum(1) == active).all()
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(layers))
    acts = (codes != 0).sum(0)
    assert acts.max() - acts.min() <= 1


def test_anchors_are_unit_vectors_that_differ_by_layer_and_seed() -> None:
    core = torch.linalg.qr(random(0, 64, 24)).Q.T
    anchors = layer_anchors(core, 30, 0)
    torch.testing.assert_close(anchors.norm(dim=1), torch.ones(30).double())
    cosines = anchors @ anchors.T - torch.eye(30)
    assert cosines.abs().max() < 0.9
    assert not torch.equal(anchors, layer_anchors(core, 30, 1))


class Doubled(nn.Module):
    """A layer that returns twice its input, and as a tuple if asked: both forms are found in decoder models."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.kind = "doubling"
        self.weight = nn.Parameter(torch.ones(()))  # every decoder layer has one

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, str]:
        return (2 * hidden_states, "rest") if self.as_tuple else 2 * hidden_states


@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_stream_layer_edits_what_its_layer_returns(as_tuple: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"get_text_config": lambda _: type("Text", (), {"hidden_size": 12})()})()
            self.layers = nn.ModuleList([Doubled(as_tuple)])
            self.head = nn.Linear(12, 12)

        def forward(self, inputs: torch.Tensor) -> object:
            return self.layers[0](inputs)

    model = PeftModel(Model(), HimalayaConfig(init_weights=False))
    layer, adapter = model.base_model.model.layers[0], model.base_model.himalaya_shared["default"]
    assert isinstance(layer, StreamLayer)
    assert layer.kind == "doubling"  # models ask their layers what they are
    inputs = random(0, 2, 3, 12, dtype=torch.float32)
    output = model.eval()(inputs)
    if as_tuple:
        output, rest = output
        assert rest == "rest"
    matrix = dense(adapter.update.anchors[0], adapter.update.codes[0], scaled(adapter.atoms.detach()), 2.0)
    assert matrix.norm() > 0.1
    torch.testing.assert_close(output, 2 * inputs + 2 * inputs @ matrix.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_under_autocast_a_fresh_adapter_is_nothing_and_learns(placement: str) -> None:
    model, tokens = attached(placement=placement), random_tokens()
    with torch.autocast("cpu", torch.bfloat16):
        fresh = logits_of(model)
        with model.disable_adapter():
            assert torch.equal(logits_of(model), fresh)
        model.train().start_task("a")
        model(input_ids=tokens, labels=tokens).loss.backward()
    (gradient,) = (one.grad for one in model.parameters() if one.grad is not None)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    assert (gradient.norm(dim=1) > 0).all()
