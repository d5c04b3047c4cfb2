"""GloDiS-64 against its formula in float64, and its parameters."""

import pytest
import torch
from families import STATIC_CASES
from peft import get_peft_model
from torch import nn

from himalaya_adapter.methods.glodis import GlodisConfig, GlodisLayer
from himalaya_adapter.methods.linear_delta import SCALING


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (6, 3), (3, 8)])
def test_the_update_is_a_weighted_sum_of_rank_one_atoms(inputs: int, outputs: int) -> None:
    atoms = 5
    model = get_peft_model(
        nn.ModuleDict({"target": nn.Linear(inputs, outputs), "widest": nn.Linear(7, 9)}),
        GlodisConfig(target_modules=["target", "widest"], dictionary_size=atoms, init_weights=False),
    ).double()
    layer, shared = model.base_model.model["target"], model.base_model.glodis_shared["default"]
    assert (shared.A.shape, shared.B.shape) == ((atoms, 7), (atoms, 9))
    weights = layer.glodis_c["default"]
    dense = SCALING * sum(
        weights[atom] * torch.outer(shared.B[atom, :outputs], shared.A[atom, :inputs]) for atom in range(atoms)
    )
    torch.testing.assert_close(layer.get_delta_weight("default"), dense)
    x = torch.randn(7, inputs, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ dense.T)
    assert torch.autograd.gradcheck(lambda *_: layer(x), (weights, shared.A, shared.B))


def test_all_layers_share_the_atoms_and_own_64_numbers_per_module() -> None:
    case = STATIC_CASES["glodis-llama-oblong"]
    model = get_peft_model(case.base(), case.config())
    layers, modules, atoms, width, inner = 2, 3, 64, 64, 128
    assert model.get_nb_trainable_parameters()[0] == atoms * (inner + inner) + layers * modules * atoms
    # v_proj reads the hidden states and up_proj writes the inner ones; down_proj reads those.
    shared = model.base_model.glodis_shared["default"]
    assert shared.A.shape == shared.B.shape == (atoms, inner)
    assert {one.in_features for one in model.modules() if isinstance(one, GlodisLayer)} == {width, inner}


def test_no_atom_is_too_few() -> None:
    with pytest.raises(ValueError, match=r"^dictionary_size=0 must be at least 1$"):
        GlodisConfig(dictionary_size=0)
