"""Growth while a model trains: what is reported, forgotten, saved, and left alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import STRICT_CASES, examples, llama, random_tokens
from peft import PeftModel, get_peft_model

from himalaya_adapter.methods.events import Promotion
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig, StrictAdapter

CORE = 24


def training(tau: float = 1.0, window: int = 4, **changes: Any) -> tuple[PeftModel, StrictAdapter]:
    case = STRICT_CASES["strict-stream"]
    config = case.config(fresh=True, similarity_threshold_tau=tau, growth_window=window, **changes)
    model = get_peft_model(case.base(), config).train()
    model.start_task("a", examples())
    return model, model.base_model.himalaya_strict_shared["default"]


def train(model: PeftModel, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)  # the gates are sampled
        model(input_ids=random_tokens(step), labels=random_tokens(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def optimizer_of(model: PeftModel, kind: type = torch.optim.AdamW, lr: float = 0.01) -> torch.optim.Optimizer:
    return kind([p for p in model.parameters() if p.requires_grad], lr=lr)


def test_only_the_moments_of_the_overwritten_atom_are_forgotten() -> None:
    model, shared = training(grow=False)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(3))
    before = {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}
    slot = 1
    shared.forget_moments(optimizer, slot)
    rows = {
        shared.dictionary.elastic: [slot],
        shared.router.head: [CORE + slot, 40 + CORE + slot],
        shared.tree.thresholds: list(range(len(shared.tree.thresholds))),
    }
    assert set(optimizer.state) == set(rows)
    for parameter, forgotten in rows.items():
        state, old = optimizer.state[parameter], before[parameter]
        kept = [row for row in range(len(parameter)) if row not in forgotten]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert old[moment][forgotten].any()  # else nothing was forgotten
            assert not state[moment][forgotten].any()
            assert torch.equal(state[moment][kept], old[moment][kept])
        assert state["step"] == old["step"]


def test_a_promotion_in_training_is_reported_with_its_moments_forgotten() -> None:
    model, shared = training()
    optimizer, events, steps = optimizer_of(model), [], []

    def note(event: Promotion) -> None:
        slot = event.slot
        for parameter, row in ((shared.dictionary.elastic, slot), (shared.router.head, CORE + slot)):
            assert not optimizer.state[parameter]["exp_avg"][row].any()
            assert not optimizer.state[parameter]["exp_avg_sq"][row].any()
            assert optimizer.state[parameter]["exp_avg"].any()
        events.append(event)
        steps.append(int(shared.growth.seen))

    model.protect(optimizer, note)
    train(model, optimizer, range(13))
    assert steps == [4, 8, 12]  # every window, as no cosine reaches 1
    assert all(event.kind == "promotion" and 0 <= event.similarity < 1 for event in events)
    torch.testing.assert_close(shared.dictionary.elastic.norm(dim=1), torch.ones(16), rtol=0, atol=1e-5)


def test_without_growth_the_training_is_the_same_and_nothing_is_promoted() -> None:
    results = []
    for grow_too in (True, False):
        model, shared = training(tau=1e-6, grow=grow_too)
        optimizer, events = optimizer_of(model), []
        model.protect(optimizer, events.append)
        train(model, optimizer, range(6))
        assert events == []
        assert shared.growth.seen == (5 if grow_too else 0)  # the first gain is 0, and so is the gradient by r
        results.append((shared.router.head.detach().clone(), shared.dictionary.elastic.detach().clone()))
    for grown, fixed in zip(*results, strict=True):
        torch.testing.assert_close(grown, fixed, rtol=0, atol=1e-4)


def test_the_window_goes_on_after_saving_and_loading(tmp_path: Path) -> None:
    runs = []
    for interrupted in (False, True):
        model, shared = training()
        optimizer, events = optimizer_of(model, torch.optim.SGD, lr=0.1), []
        model.protect(optimizer, events.append)
        train(model, optimizer, range(6))
        assert len(events) == 1  # and two steps of the next window
        if interrupted:
            model.save_pretrained(tmp_path)
            base = STRICT_CASES["strict-stream"].base()
            model = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).train()
            shared = model.base_model.himalaya_strict_shared["default"]
            optimizer = optimizer_of(model, torch.optim.SGD, lr=0.1)
            model.protect(optimizer, events.append)
        train(model, optimizer, range(6, 9))
        assert len(events) == 2
        runs.append((events, shared.state_dict()))
    # Up to the rounding of sums, whose order may depend on where in memory a loaded tensor lies.
    (first, state), (second, resumed) = runs
    assert [event.slot for event in first] == [event.slot for event in second]
    assert [event.similarity for event in first] == pytest.approx([event.similarity for event in second])
    for name, tensor in state.items():
        rounding = 1 if name == "growth.residuals" else 1e-4
        torch.testing.assert_close(resumed[name].double(), tensor.double(), rtol=0, atol=rounding, msg=name)


@pytest.mark.slow
def test_an_adapter_in_64_bits_grows_and_evicts() -> None:
    model, shared = training(window=2, elastic_atoms=4)
    model.double()
    optimizer, events = optimizer_of(model), []
    model.protect(optimizer, events.append)
    for task in "bcde":
        events += model.start_task(task, examples())
        train(model, optimizer, range(6))
        model.end_task()
    assert {event.kind for event in events} == {"promotion", "eviction"}
    assert all(tensor.isfinite().all() for tensor in shared.state_dict().values())
    assert shared.dictionary.elastic.dtype == torch.float64


def test_growth_needs_no_gradient_of_a_frozen_dictionary() -> None:
    model = get_peft_model(llama(), HimalayaStrictConfig(task_type="CAUSAL_LM")).train()
    shared = model.base_model.himalaya_strict_shared["default"]
    shared.dictionary.elastic.requires_grad_(False)
    model(input_ids=random_tokens(), labels=random_tokens()).loss.backward()
    assert shared.update.probe is None
