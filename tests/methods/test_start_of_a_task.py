"""How a task begins: as the frozen model, with atoms of its own that point where its loss falls."""

import copy

import pytest
import torch
from families import CASES, Case, llama, random_tokens
from peft import PeftModel, get_peft_model

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.methods.himalaya import SharedAdapter
from himalaya_adapter.methods.himalaya.protection import kronecker_moment, reset_head, shrink_projector
from himalaya_adapter.methods.himalaya.router import task_code

LATENT, CODE, OUTPUTS = 5, 12, 7


def head_and_projector(names: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random head, the latents of past tasks, and the projector that protects all of their energy."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(OUTPUTS, LATENT, CODE, generator=generator, dtype=torch.float64)
    latents = torch.randn(200, LATENT, generator=generator, dtype=torch.float64)
    projector = torch.eye(LATENT * CODE, dtype=torch.float64)
    for name in names:
        moment = kronecker_moment(latents.T @ latents, task_code(name, CODE).double())
        projector = shrink_projector(projector, moment, 1 - 1e-12)
    return head, latents, projector


def test_a_reset_head_is_the_target_for_its_task_and_the_old_head_for_past_ones() -> None:
    head, latents, projector = head_and_projector(["a", "b", "c"])
    code = task_code("d", CODE).double()
    target = torch.randn(OUTPUTS, LATENT, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reset = reset_head(head, target, projector, code)
    torch.testing.assert_close(reset @ code, target, rtol=0, atol=1e-9)
    assert (head @ code - target).abs().max() > 0.1
    for name in ("a", "b", "c"):
        past = task_code(name, CODE).double()
        torch.testing.assert_close(latents @ (reset @ past).T, latents @ (head @ past).T, rtol=0, atol=1e-6)


def test_a_task_that_comes_again_keeps_its_head() -> None:
    head, _, projector = head_and_projector(["a", "b"])
    reset = reset_head(head, torch.zeros(OUTPUTS, LATENT, dtype=torch.float64), projector, task_code("a", CODE))
    torch.testing.assert_close(reset, head, rtol=0, atol=1e-9)


def learn(model: PeftModel, task: str, seed: int, steps: int = 6) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    handles = model.protect(optimizer)
    tokens = random_tokens(seed, batch=8)
    model.start_task(task, {"input_ids": tokens, "labels": tokens})
    model.train()
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.end_task()
    model.eval()
    for handle in handles:
        handle.remove()


def shared_of(model: PeftModel) -> SharedAdapter:
    return model.base_model.himalaya_shared["default"]


@pytest.mark.parametrize("name", ["llama-stream", "llama-oblong", "opt-weights"])
def test_every_task_begins_as_the_frozen_model(name: str) -> None:
    case: Case = CASES[name]
    model = get_peft_model(case.base(), case.config(fresh=True)).eval()
    tokens = random_tokens(9)
    with torch.no_grad(), model.disable_adapter():
        frozen = model(tokens).logits
    for index in range(3):
        model.start_task(f"task {index}")
        torch.testing.assert_close(model(tokens).logits, frozen, rtol=0, atol=1e-3)
        learn(model, f"task {index}", seed=index)
        assert (model(tokens).logits - frozen).abs().max() > 0.05  # it has learnt something


def test_tasks_own_disjoint_atoms_until_none_is_free_and_only_they_move() -> None:
    model = get_peft_model(llama(), HimalayaConfig(task_type="CAUSAL_LM", elastic_atoms=5, atoms_per_task=2))
    shared = shared_of(model)
    owners: list[set[int]] = []
    for index in range(4):
        before = shared.dictionary.elastic.detach().clone()
        learn(model, f"task {index}", seed=index)
        own = set((shared.own[24:]).nonzero().flatten().tolist())
        moved = set((shared.dictionary.elastic.detach() - before).abs().amax(1).nonzero().flatten().tolist())
        assert moved <= own
        assert len(own) == 2
        owners.append(own)
    assert owners[0].isdisjoint(owners[1])
    assert len(owners[2] - owners[0] - owners[1]) == 1  # the last free slot and the least important of the others
    assert shared.in_use.all()
    assert model.task_statistics()["free_atoms"] == 0


def test_promoted_atoms_lower_the_loss_as_fast_as_predicted() -> None:
    """A constant small gain on the promoted atom changes the loss by ``-gain r C r``, more than random atoms do."""
    torch.manual_seed(0)
    tokens = random_tokens(3, batch=6)
    batch = {"input_ids": tokens, "labels": tokens}
    model = get_peft_model(llama().double(), HimalayaConfig(task_type="CAUSAL_LM", atoms_per_task=1))
    model = model.double().eval()
    model.start_task("task", batch)
    shared = shared_of(model)
    _, curvature = model.base_model._first_residuals(shared, batch)
    curvature = curvature.double()

    def fall(atom: torch.Tensor, gain: float) -> tuple[float, float]:
        probe = copy.deepcopy(model)
        probed = shared_of(probe)
        with torch.no_grad():
            probed.dictionary.elastic[probed.own[24:]] = atom
            probed.router.head[-1, -1] += gain * probed.code
            loss = [float(one(**batch).loss) for one in (model, probe)]
        return loss[0] - loss[1], gain * float(atom @ curvature @ atom)

    promoted = shared.dictionary.elastic.detach()[shared.own[24:]][0]
    sign = float(torch.sign(promoted @ curvature @ promoted))
    measured, predicted = fall(promoted, sign * 1e-4)
    assert measured == pytest.approx(predicted, rel=0.05)
    assert measured > 0
    random = torch.nn.functional.normalize(torch.randn(20, len(promoted), dtype=torch.float64), dim=1)
    assert all(abs(fall(atom, 1e-4)[0]) < measured for atom in random)
