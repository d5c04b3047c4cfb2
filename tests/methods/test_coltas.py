"""COLTAS against its formula in float64; which components a task has; that no other one ever moves."""

from itertools import combinations

import pytest
import torch
from families import STATIC_CASES, Case, llama, random_tokens
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from himalaya_adapter.methods.coltas import ColtasConfig, ColtasLayer, task_components
from himalaya_adapter.methods.linear_delta import SCALING

CASE = STATIC_CASES["coltas-llama"]
every_case = pytest.mark.parametrize("name", ["coltas-llama", "coltas-opt"])


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens()).logits


def components_of(name: str) -> set[int]:
    return set(task_components(name, ColtasConfig()).tolist())


# The formula ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (6, 3), (3, 8)])
def test_the_update_is_the_sum_of_the_components_of_the_mask(inputs: int, outputs: int) -> None:
    model = get_peft_model(
        nn.ModuleDict({"target": nn.Linear(inputs, outputs)}),
        ColtasConfig(target_modules=["target"], components=8, mask_atoms=4, atoms_per_task=2, init_weights=False),
    ).double()
    layer = model.base_model.model["target"]
    inward, outward = layer.coltas_A["default"], layer.coltas_B["default"]
    assert (inward.shape, outward.shape) == ((8, inputs), (outputs, 8))
    x = torch.randn(7, inputs, dtype=torch.float64)
    updates = []
    for task in ("first", "second"):
        model.set_task(task)
        mask = torch.zeros(8, dtype=torch.float64)
        mask[task_components(task, model.peft_config["default"])] = 1
        assert mask.sum() == 4
        dense = SCALING * outward @ mask.diag() @ inward
        torch.testing.assert_close(layer.get_delta_weight("default"), dense)
        torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ dense.T)
        assert torch.autograd.gradcheck(lambda *_: layer(x), (inward, outward))
        updates.append(dense)
    assert not torch.equal(*updates)


def test_the_parameters_are_those_of_one_adapter_for_all_tasks() -> None:
    model = CASE.adapted()
    layers, components, width, keys = 2, 32, 64, 32
    wanted = layers * components * (2 * (width + width) + 2 * (width + keys))
    assert model.get_nb_trainable_parameters()[0] == wanted
    sizes = []
    for task in range(30):
        model.start_task(f"task {task}")
        sizes.append({name: tensor.shape for name, tensor in get_peft_model_state_dict(model).items()})
    assert all(size == sizes[0] for size in sizes), "nothing is stored per task"


# Masks ---------------------------------------------------------------------------------------------------------


def test_the_masks_are_the_same_on_every_machine() -> None:
    """Written down once: these numbers may never change, or saved adapters answer with other components."""
    assert sorted(components_of("film_verdict")) == [2, 3, 4, 5, 14, 15, 30, 31]
    assert sorted(components_of("")) == [2, 3, 8, 9, 12, 13, 20, 21]


def test_tasks_have_equally_many_components_and_use_all_of_them_alike() -> None:
    names = [f"task {number}" for number in range(200)]
    sets = [components_of(name) for name in names]
    assert {len(one) for one in sets} == {8}
    assert len({frozenset(one) for one in sets}) > 180
    uses = torch.zeros(32)
    for one in sets:
        uses[list(one)] += 1
    assert uses.min() > 30  # 50 on average
    overlaps = [len(one & other) for one, other in combinations(sets, 2)]
    assert sum(overlaps) / len(overlaps) == pytest.approx(2, abs=0.1)  # 8 of 32, twice


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": 0}, "components=0 must be at least 1"),
        ({"components": 30}, "components=30 is not a multiple of mask_atoms=16"),
        ({"atoms_per_task": 17}, "atoms_per_task=17 exceeds mask_atoms=16"),
        ({"mask_atoms": 0}, "mask_atoms=0 must be at least 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        ColtasConfig(**changes)


# Tasks ---------------------------------------------------------------------------------------------------------


@every_case
def test_the_task_decides_the_outputs_and_its_name_decides_the_task(name: str) -> None:
    model = STATIC_CASES[name].adapted()
    model.set_task("summarise")
    first = logits_of(model)
    model.set_task("translate")
    assert not torch.equal(logits_of(model), first)
    model.set_task("summarise")
    assert torch.equal(logits_of(model), first)


def learn(model: PeftModel, name: str, steps: int = 4, weight_decay: float = 0.1) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=weight_decay)
    model.train().start_task(name)
    handles = model.protect(optimizer)
    for step in range(steps):
        model(input_ids=random_tokens(step), labels=random_tokens(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for handle in handles:
        handle.remove()
    model.eval()


@every_case
def test_components_outside_the_mask_never_move(name: str) -> None:
    """Bit for bit, with weight decay, which moves what has no gradient."""
    model = STATIC_CASES[name].adapted()
    for task in ("first", "second"):
        before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
        learn(model, task)
        own = sorted(components_of(task))
        others = sorted(set(range(32)) - set(own))
        looked_at = 0
        for key, tensor in model.named_parameters():
            if "coltas_" in key:
                dim = 0 if "coltas_A" in key else 1
                moved = (tensor != before[key]).any(1 - dim)
                assert moved[own].all(), key
                assert not moved[others].any(), key
                looked_at += 1
            else:
                assert torch.equal(tensor, before[key]), key
        assert looked_at == 2 * sum(isinstance(module, ColtasLayer) for module in model.modules())


def test_a_task_that_shares_no_component_answers_as_before_bit_for_bit() -> None:
    apart = next(name for name in (f"task {n}" for n in range(100)) if not components_of(name) & components_of("kept"))
    model = CASE.adapted()
    learn(model, "kept")
    model.set_task("kept")
    before = logits_of(model)
    learn(model, apart)
    model.set_task("kept")
    assert torch.equal(logits_of(model), before)
    model.set_task(apart)
    assert not torch.equal(logits_of(model), before)


def test_without_protection_weight_decay_moves_them() -> None:
    """Without this, the test above would say nothing about `protect`."""
    model = Case(llama, method=ColtasConfig).adapted()
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    model.train().start_task("first")
    model(input_ids=random_tokens(), labels=random_tokens()).loss.backward()
    others = sorted(set(range(32)) - components_of("first"))
    for key, tensor in model.named_parameters():
        if "coltas_" in key:
            gradient = tensor.grad[others] if "coltas_A" in key else tensor.grad[:, others]
            assert (gradient == 0).all(), key
    optimizer.step()
    assert any(
        not torch.equal(tensor[others], before[key][others])
        for key, tensor in model.named_parameters()
        if "coltas_A" in key
    )


def test_the_task_is_saved_with_the_adapter(tmp_path) -> None:
    model = CASE.adapted()
    model.set_task("translate")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(CASE.base(), tmp_path).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))
    loaded.set_task("summarise")
    assert not torch.equal(logits_of(loaded), logits_of(model))
