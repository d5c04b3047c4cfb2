"""Groups of consecutive layers that route for themselves."""

import pytest
import torch
from families import examples, llama
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.methods.himalaya import SharedAdapter
from himalaya_adapter.methods.himalaya.allocation import evict, serving_groups
from himalaya_adapter.methods.himalaya.router import UNUSED_GATE

CORE = 4
SMALL = {"core_atoms": CORE, "hidden_params": 20_000, "code_width": 8, "grow": False, "index": "scan"}


def grouped(layers: int = 4, groups: int = 2, **changes: object) -> tuple[PeftModel, SharedAdapter]:
    config = HimalayaConfig(task_type="CAUSAL_LM", depth_groups=groups, **SMALL, **changes)
    model = get_peft_model(llama(layers), config)
    return model, model.base_model.himalaya_shared["default"]


@settings(deadline=None, max_examples=30)
@given(own=st.integers(1, 9), groups=st.integers(1, 6))
def test_atoms_are_dealt_out_evenly_and_every_group_has_one(own: int, groups: int) -> None:
    config = HimalayaConfig(depth_groups=groups, elastic_atoms=9, atoms_per_task=own, **SMALL)
    serving = serving_groups(SharedAdapter(config, 16))
    assert serving.sum() == max(own, groups)
    assert serving.any(1).sum() == own
    assert not serving[:CORE].any()
    for sizes in (serving.sum(0), serving[serving.any(1)].sum(1)):
        assert 1 <= sizes.min() <= sizes.max() <= sizes.min() + 1
    first = serving[CORE:].int().argmax(1)[:own]
    assert (first.diff() >= 0).all()  # neighbouring atoms serve neighbouring groups


@pytest.mark.parametrize(("layers", "expected"), [(4, [0, 0, 1, 1]), (5, [0, 0, 0, 1, 1]), (1, [0])])
def test_consecutive_layers_form_a_group(layers: int, expected: list[int]) -> None:
    model, _ = grouped(layers)
    assert [layer.group["default"] for layer in model.base_model._layers("default")] == expected


def test_each_group_of_layers_begins_with_atoms_of_its_own_that_lower_its_loss() -> None:
    model, shared = grouped(elastic_atoms=6, atoms_per_task=6)
    batch = examples()
    model.start_task("first", batch)
    _, curvature = model.base_model._first_residuals("default", batch)
    latents = torch.randn(50, len(shared.router.offset))
    for group in range(2):
        coefficients, gain = shared.eval().route(latents, group)
        used = (coefficients != 0).all(0).nonzero().flatten() - CORE
        assert used.tolist() == [3 * group, 3 * group + 1, 3 * group + 2]
        assert (coefficients != 0).sum() == 3 * len(latents)
        assert not gain.any()
        span = shared.dictionary.elastic[used].detach().double()
        values, vectors = torch.linalg.eigh(curvature[group].double())
        leading = vectors[:, -3:] if values[-1] >= -values[0] else vectors[:, :3]
        torch.testing.assert_close(span.T @ span, leading @ leading.T, rtol=0, atol=1e-5)


def test_one_group_learns_while_another_stays_as_it_is() -> None:
    model, shared = grouped(elastic_atoms=6, atoms_per_task=6)
    model.start_task("first", examples())
    with torch.no_grad():
        shared.router.head[-1, -1] = 3 * shared.code  # the gain of the second group only
    states = torch.randn(2, 5, 64)
    assert not shared(states, 64, 0).any()
    assert shared(states, 64, 1).any()


def test_what_is_evicted_is_handed_over_within_its_group() -> None:
    model, shared = grouped(elastic_atoms=6, atoms_per_task=6)
    model.start_task("first", examples())
    model.train()(**examples()).loss.backward()
    shared.before_step()
    model.end_task()
    before, past = shared.router.task_head(shared.code).detach(), shared.code.clone()
    with torch.no_grad():
        event = evict(shared)
    after = shared.router.task_head(past).detach()
    slot, newcomer, count = CORE + event["slot"], event["newcomer"], len(shared.in_use)
    group, other = (0, 1) if event["slot"] < 3 else (1, 0)
    latent = len(shared.router.offset)
    assert (after[slot, latent:] <= UNUSED_GATE + 1e-3).all()
    assert after[newcomer, latent + group] > 0
    torch.testing.assert_close(after[newcomer, latent + other], before[newcomer, latent + other], rtol=0, atol=1e-4)
    changed = (after[count:-1] != before[count:-1]).any(1).nonzero().flatten().tolist()
    in_group = {CORE + 3 * group + place for place in range(3)}
    assert set(changed) - {newcomer} <= in_group
