"""`torch.compile` computes what the model computes, in training and in evaluation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import random_tokens
from learning import adapter_of, attached, learn, logits_of


@pytest.mark.slow
def test_a_compiled_model_computes_what_the_model_computes() -> None:
    model = attached()
    learn(model, "a", end=False)
    tokens = random_tokens(1)
    mask = torch.ones_like(tokens).index_fill_(1, torch.arange(3), 0)
    inputs = {"input_ids": tokens, "attention_mask": mask, "labels": tokens}

    def outputs(run: Callable[..., Any], training: bool) -> list[torch.Tensor]:
        model.train(training).zero_grad()
        run(**inputs).loss.backward()
        return [run(**inputs).logits.detach(), adapter_of(model).atoms.grad.clone()]

    compiled = torch.compile(model, backend="eager")  # what the tracer makes of it, as it stands
    for training in (False, True):
        for one, other in zip(outputs(model, training), outputs(compiled, training), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    model.eval().end_task()
    a = logits_of(model)
    learn(model, "b")
    for name in ("a", "b"):  # what was traced does not hold on to a task
        model.set_task(name)
        with torch.no_grad():
            torch.testing.assert_close(compiled(input_ids=random_tokens()).logits, logits_of(model))
    model.set_task("a")
    assert torch.equal(logits_of(model), a)


@pytest.mark.parametrize("placement", ["residual_stream", pytest.param("weights", marks=pytest.mark.slow)])
def test_layers_that_are_compiled_one_by_one_learn_step_after_step(placement: str) -> None:
    model = attached(placement=placement).train()
    model.start_task("a")
    for block in model.get_base_model().get_decoder().layers:
        block.compile(backend="aot_eager")
    optimizer = torch.optim.AdamW([adapter_of(model).atoms], lr=3e-3)
    losses = []
    for _ in range(4):
        loss = model(input_ids=random_tokens(), labels=random_tokens(), use_cache=False).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
