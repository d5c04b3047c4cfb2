"""`torch.compile` sees the adapted model as one graph, and computes what the model computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import CASES, random_tokens


@pytest.mark.parametrize("name", ["llama-stream", "opt-weights"])
def test_a_compiled_model_is_one_graph_with_the_same_outputs(name: str) -> None:
    model = CASES[name].adapted()
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
