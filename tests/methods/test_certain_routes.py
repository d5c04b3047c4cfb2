"""Inference where it is certain that all tokens of a task use the same atoms: the same answers with less work."""

import pytest
import torch
from families import examples, llama
from peft import PeftModel, get_peft_model

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.methods.himalaya import SharedAdapter
from himalaya_adapter.methods.himalaya.update import SharedUpdate

KINDS = {
    "tree": {},
    "scan": {"index": "scan"},
    "weights": {"placement": "weights", "target_modules": ["q_proj", "down_proj"]},
    "fixed-gain": {"gain": "fixed"},
}


def learnt(**changes: object) -> tuple[PeftModel, SharedAdapter]:
    """A model that has learnt a task, with a gain that differs from token to token."""
    small = {"core_atoms": 4, "code_width": 8, "hidden_params": 2_500, "grow": False}
    config = HimalayaConfig(task_type="CAUSAL_LM", **small, **changes)
    model = get_peft_model(llama(3), config)
    model.start_task("first", examples())
    model.observe_prompts(examples()["input_ids"])
    shared = model.base_model.himalaya_shared["default"]
    with torch.no_grad():
        shared.router.head[-1] += torch.randn(shared.router.head.shape[1], 1) * shared.code
    model.end_task()
    return model.eval(), shared


@pytest.mark.parametrize("inferred", [False, True], ids=["named", "inferred"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_those_of_the_whole_router(kind: str, inferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, shared = learnt(**KINDS[kind])
    if inferred:
        model.set_task(None)
    batch = examples()
    with torch.no_grad():
        model(**batch)  # the first pass meets the layers' shapes
        fixed = model(**batch).logits
        assert len(shared._routes.certain) == 3
        assert {len(maps.atoms_out) for maps in shared._maps.values()} == {3}
        monkeypatch.setattr(SharedUpdate, "_certain_routes", lambda *_: None)
        routed = model(**batch).logits
        assert {len(maps.atoms_out) for maps in shared._maps.values()} == {len(shared.own)}
        with model.disable_adapter():
            frozen = model(**batch).logits
    torch.testing.assert_close(fixed, routed, rtol=1e-5, atol=1e-5)
    assert (fixed - frozen).abs().max() > 1e-3


def test_nothing_is_taken_for_certain_that_is_not() -> None:
    model, shared = learnt()
    with torch.no_grad():
        shared.router.head += 3 * torch.randn(shared.router.head.shape[:2])[..., None] * shared.code
        model(**examples())
    assert shared._routes.certain is None


def test_training_and_batches_of_several_tasks_choose_for_each_token() -> None:
    model, shared = learnt()
    model.train()(**examples())
    assert shared._routes.certain is None
    model.eval()
    shared._row_codes = torch.stack([shared.code, -shared.code])
    with torch.no_grad():
        model(input_ids=examples()["input_ids"][:2])
    assert shared._routes.certain is None
