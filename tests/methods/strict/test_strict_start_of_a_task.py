"""How a task begins: as the frozen model, with atoms of its own that point where its loss falls."""

import copy
from pathlib import Path

import pytest
import torch
from families import STRICT_CASES, Case, examples, llama, random_tokens
from peft import PeftModel, get_peft_model

from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig, StrictAdapter
from himalaya_adapter.methods.himalaya_strict.protection import reset_head, shrink_projector
from himalaya_adapter.methods.himalaya_strict.router import task_code
from himalaya_adapter.methods.himalaya_strict.task_start import first_residuals

LATENT, CODE, OUTPUTS = 5, 12, 7


def head_and_projector(names: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random head, the latents of past tasks, and the projector that protects all of their energy."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(OUTPUTS, LATENT, CODE, generator=generator, dtype=torch.float64)
    latents = torch.randn(200, LATENT, generator=generator, dtype=torch.float64)
    projector = torch.eye(LATENT * CODE, dtype=torch.float64)
    for name in names:
        code = task_code(name, CODE).double()
        moment = torch.kron(latents.T @ latents, torch.outer(code, code))
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


def learn(model: PeftModel, task: str, seed: int, steps: int = 6) -> list[dict]:
    """Train a task on random tokens; returns the evictions that made room for it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    handles = model.protect(optimizer)
    tokens = random_tokens(seed, batch=8)
    evictions = model.start_task(task, {"input_ids": tokens, "labels": tokens})
    model.observe_prompts(tokens)
    model.train()
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.end_task()
    model.eval()
    for handle in handles:
        handle.remove()
    return evictions


def shared_of(model: PeftModel) -> StrictAdapter:
    return model.base_model.himalaya_strict_shared["default"]


@pytest.mark.parametrize("case", STRICT_CASES.values(), ids=STRICT_CASES.keys())
def test_every_task_begins_as_the_frozen_model(case: Case) -> None:
    model = get_peft_model(case.base(), case.config(fresh=True)).eval()
    tokens = random_tokens(9)
    with torch.no_grad(), model.disable_adapter():
        frozen = model(tokens).logits
    for index in range(2):
        model.start_task(f"task {index}")
        torch.testing.assert_close(model(tokens).logits, frozen, rtol=0, atol=1e-3)
        learn(model, f"task {index}", seed=index)
        assert (model(tokens).logits - frozen).abs().max() > 0.05  # it has learnt something


@pytest.mark.parametrize("consolidate", [True, False])
def test_tasks_own_a_fair_share_of_free_atoms_then_those_missed_least(consolidate: bool) -> None:
    config = HimalayaStrictConfig(task_type="CAUSAL_LM", elastic_atoms=6, atoms_per_task=2, consolidate=consolidate)
    model = get_peft_model(llama(), config)
    shared = shared_of(model)
    owned: list[int] = []
    for index in range(3):
        assert learn(model, f"task {index}", seed=index, steps=3) == []
        own = shared.own[-len(shared.dictionary.elastic) :].nonzero().flatten().tolist()
        assert len(own) == 2
        owned += own
        assert model.task_statistics()["free_atoms"] == 6 - len(owned)
    assert len(set(owned)) == 6  # nobody shares an atom
    assert (shared.importance > 0).all()
    for index in range(3, 6):
        missed = shared.importance.tolist()
        if consolidate:
            atoms, residuals = shared.dictionary.atoms().detach(), shared.growth.unit_residuals()
            together = shared.consolidation.used_together()
            found = [
                shared.consolidation.stand_in(atoms, 24 + slot, together, shared.in_use, residuals, 20)
                for slot in range(6)
            ]
            missed = [value * (1 - one.survives) for value, one in zip(missed, found, strict=True)]
        importance = shared.importance.sum()
        events = learn(model, f"task {index}", seed=index, steps=3)
        assert shared.in_use.all()
        own = shared.own[-len(shared.dictionary.elastic) :].nonzero().flatten().tolist()
        [event] = events  # a sixth of the slots, or at least one
        assert event.kind == "eviction"
        assert event.slot == missed.index(min(missed))
        assert own == [event.slot]
        if index == 3 and not consolidate:  # what the evicted one meant goes to its partner; every task counts 1
            assert shared.importance.sum().item() == pytest.approx(importance.item() + 1, abs=1e-3)


def test_a_task_without_atoms_learns_with_those_along_which_its_loss_falls_fastest() -> None:
    torch.manual_seed(0)
    model = get_peft_model(llama(), HimalayaStrictConfig(task_type="CAUSAL_LM", elastic_atoms=3, evict=False))
    shared = shared_of(model)
    learn(model, "first", seed=0)
    atoms = shared.dictionary.atoms().detach().clone()
    tokens = random_tokens(1, batch=8)
    model.eval().set_task("first")
    first = model(tokens).logits.detach()
    batch = {"input_ids": tokens, "labels": tokens}
    assert model.start_task("second", batch) == []
    assert not shared.own.any()
    _, curvature = first_residuals(model.base_model, shared, batch)
    values = torch.linalg.eigvalsh(curvature.double())
    falls = torch.einsum("ki,ij,kj->k", atoms, curvature, atoms) * (1 if values[-1] >= -values[0] else -1)
    gates = shared.router.task_head(shared.code)[: len(atoms), -1]
    assert set(gates.topk(3).indices.tolist()) == set(falls.topk(3).indices.tolist())
    with torch.no_grad(), model.disable_adapter():
        frozen = model(tokens).logits
    torch.testing.assert_close(model(tokens).logits, frozen, rtol=0, atol=1e-3)
    learn(model, "second", seed=1, steps=12)
    assert torch.equal(shared.dictionary.atoms(), atoms)
    losses = [
        torch.nn.functional.cross_entropy(one[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        for one in (model(tokens).logits, frozen)
    ]
    assert losses[0] < losses[1] - 0.01
    model.set_task("first")
    assert (model(tokens).logits - first).norm() < 0.1 * (first - frozen).norm()


def test_promoted_atoms_lower_the_loss_as_fast_as_predicted() -> None:
    """A constant small gain on the promoted atom changes the loss by ``-gain r C r``, more than random atoms do."""
    torch.manual_seed(0)
    tokens = random_tokens(3, batch=6)
    labels = tokens.clone()
    labels[:2, :7] = -100  # the passes that the examples are split into do not count alike
    batch = {"input_ids": tokens, "labels": labels}
    model = get_peft_model(llama().double(), HimalayaStrictConfig(task_type="CAUSAL_LM", atoms_per_task=1))
    model = model.double().eval()
    model.start_task("task", batch)
    shared = shared_of(model)
    _, curvature = first_residuals(model.base_model, shared, batch)
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


def test_the_projection_is_fitted_once_from_the_first_task(tmp_path: Path) -> None:
    model = get_peft_model(llama(), HimalayaStrictConfig(task_type="CAUSAL_LM"))
    shared = shared_of(model)
    random_start = shared.router.projection.clone()
    model.start_task("first", examples(0))
    fitted = shared.router.projection.clone()
    assert not torch.equal(fitted, random_start)
    assert model.training
    model(input_ids=random_tokens(), labels=random_tokens()).loss.backward()
    model.end_task()
    model.start_task("second", examples(1))
    assert torch.equal(shared.router.projection, fitted)
    model.save_pretrained(tmp_path)
    loaded = shared_of(PeftModel.from_pretrained(llama(), tmp_path))
    assert torch.equal(loaded.router.projection, fitted)


def test_padding_does_not_take_part_in_the_start_of_a_task() -> None:
    tokens = random_tokens(0, 4, 30)
    base = Case(llama, method=HimalayaStrictConfig).base()
    starts = []
    for padding in (0, 6):
        model = get_peft_model(base, HimalayaStrictConfig(task_type="CAUSAL_LM"))
        padded = torch.cat([tokens, torch.zeros(4, padding, dtype=torch.int64)], dim=1)
        labels = padded.masked_fill(padded == 0, -100)
        mask = (padded != 0).long()
        model.start_task("first", {"input_ids": padded, "attention_mask": mask, "labels": labels})
        shared = shared_of(model)
        starts.append((shared.router.projection.clone(), shared.dictionary.elastic.detach().clone()))
        base = model.unload()
    for unpadded, padded in zip(*starts, strict=True):
        torch.testing.assert_close(padded, unpadded, rtol=1e-3, atol=1e-3)
