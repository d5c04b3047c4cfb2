"""`torch.compile` sees the adapted model as one graph, and computes what the model computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import Case, llama, random_tokens

from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig

pytestmark = pytest.mark.slow  # the tracer takes long; that of HIMALAYA itself is in the suite
CASE = Case(lambda: llama(1), method=HimalayaStrictConfig)  # tracing takes its time for every layer


def test_a_compiled_model_is_one_graph_with_the_same_outputs() -> None:
    model = CASE.adapted()
    tokens = random_tokens(1)
    mask = torch.ones_like(tokens).index_fill_(1, torch.arange(3), 0)
    inputs = {"input_ids": tokens, "attention_mask": mask, "labels": tokens}

    def outputs(run: Callable[..., Any], training: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)  # of the gates' noise
        model.train(training).zero_grad()
        run(**inputs).loss.backward()
        logits = run(**inputs).logits.detach()
        return [logits, *(one.grad.clone() for one in model.parameters() if one.grad is not None)]

    compiled = torch.compile(model, backend="eager", fullgraph=True)  # what the tracer makes of it, as it stands
    for training in (False, True):
        wanted, found = outputs(model, training), outputs(compiled, training)
        assert len(found) >= 3
        for one, other in zip(wanted, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_a_compiled_layer_that_is_the_first_to_run_can_be_trained_step_after_step() -> None:
    model = CASE.adapted().train()
    for block in model.get_base_model().get_decoder().layers:
        block.compile(backend="aot_eager")
    for seed, progress in enumerate((0.0, 0.3, 0.6)):
        model.anneal(progress)
        tokens = random_tokens(seed)
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)
        model.zero_grad()
