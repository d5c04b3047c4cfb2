"""The verbs of a stream: every method has them, and nobody asks which of them a model has."""

import re
from pathlib import Path

import pytest
import torch
from families import llama, random_tokens
from peft import LoraConfig, get_peft_model

import himalaya_adapter
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.continual import ContinualModel, continual
from himalaya_adapter.methods.events import Event, Eviction, Promotion, Sharing, SkippedStep
from himalaya_adapter.methods.himalaya import HimalayaConfig
from himalaya_adapter.registry import METHODS, method_row

VERBS = [name for name in vars(ContinualModel) if not name.startswith("_")]
# As the lines of ``events.jsonl`` of committed results hold them, without index, task and step.
LINES = {
    Sharing(3, 0.99): {"event": "sharing", "slot": 3, "similarity": 0.99},
    Eviction(3, survives=0.5, tasks=("a",)): {"event": "eviction", "slot": 3, "survives": 0.5, "tasks": ("a",)},
    Eviction(3, 0.5, importance=0.1, newcomer=30): {
        **{"event": "eviction", "slot": 3, "importance": 0.1, "newcomer": 30, "survives": 0.5}
    },
    Promotion(1, 0.25): {"event": "promotion", "slot": 1, "similarity": 0.25},
    Promotion(1, 0.5, 1, 0.9): {"event": "promotion", "similarity": 0.5, "evicted": 1, "survives": 0.9, "slot": 1},
    SkippedStep(): {"event": "skipped_step"},
}


@pytest.mark.parametrize(("event", "line"), LINES.items(), ids=lambda one: getattr(one, "kind", ""))
def test_an_event_has_the_line_that_files_have_always_had(event: Event, line: dict) -> None:
    assert event.as_dict() == line


def test_a_peft_method_without_verbs_takes_them_all_and_is_left_alone() -> None:
    torch.manual_seed(0)
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    method, tokens = continual(model), random_tokens()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad])
    assert method.start_task("a", {"input_ids": tokens}) == []
    method.observe_prompts(tokens)
    assert method.protect(optimizer) == []
    method.anneal(0.5)
    method.skip_step()
    assert method.penalty() == 0
    assert method.end_task() == []
    method.set_task("a")
    assert method.tasks == []
    assert method.remembers_task("a")
    assert method.task_hash("a") is None
    assert method.stored_bytes() == method.norm_certificate() == method.task_statistics() == {}
    assert [method.separates_tasks, method.switches_tasks, method.recognises_tasks] == [False] * 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(HimalayaError, match="task 'a' cannot be forgotten alone"):
        method.forget_task("a")
    with pytest.raises(HimalayaError, match="cannot tell a task from its prompt"):
        method.infer_task(tokens, ["a"])


def test_the_verbs_of_a_method_of_its_own_are_its_tuners() -> None:
    model = get_peft_model(llama(), HimalayaConfig(task_type="CAUSAL_LM"))
    assert continual(model) is model.base_model
    assert model.start_task.__self__ is model.base_model


def test_nobody_asks_a_model_for_a_verb() -> None:
    source = Path(himalaya_adapter.__file__).parent
    asked = re.compile(rf"(has|get)attr\([^)]*[\"']({'|'.join(VERBS)})[\"']")
    assert [path for path in source.rglob("*.py") if asked.search(path.read_text(encoding="utf-8"))] == []


def test_a_method_without_a_row_is_one_of_pefts() -> None:
    assert method_row("vera").type == "VERA"
    assert not method_row("vera").protects_itself
    assert method_row("himalaya") is METHODS["HIMALAYA"]
    colors = [row.color for row in METHODS.values() if row.color is not None]
    assert len({*colors}) == len(colors)
