"""How far a graph's outputs in ONNX Runtime are from PyTorch's, both in 32 bits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from peft import PeftModel
from torch import Tensor

from himalaya_adapter.deploy.bundle.runner.graph import PAST, PRESENT
from himalaya_adapter.errors import HimalayaError

from .writing import cache_names

# Largest difference, relative to the largest entry of PyTorch's output where that is above 1.
TOLERANCE = 1e-5

# Inputs, and what PyTorch returns for them, by the names of inputs and outputs.
Case = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
# Of each output ``max_abs``, ``largest`` and ``relative``.
Differences = dict[str, dict[str, float]]


def compare(session: onnxruntime.InferenceSession, cases: Sequence[Case]) -> Differences:
    """The differences of each output over all cases.

    Args:
        session: The graph.
        cases: What PyTorch returns for which inputs; those that the graph does not have are left out.

    Returns:
        For each output ``max_abs``, the largest absolute difference, ``largest``, the largest entry of PyTorch's
        output, and ``relative``, the first divided by the larger of the second and 1.
    """
    found: Differences = {}
    taken = {entry.name for entry in session.get_inputs()}
    for inputs, expected in cases:
        names = list(expected)
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items() if name in taken})
        for name, output in zip(names, outputs, strict=True):
            wanted = expected[name].numpy()
            entry = found.setdefault(name, {"max_abs": 0.0, "largest": 0.0})
            difference = np.nan_to_num(np.abs(output - wanted), nan=np.inf)
            entry["max_abs"] = max(entry["max_abs"], float(difference.max(initial=0)))
            entry["largest"] = max(entry["largest"], float(np.abs(wanted).max(initial=0)))
    for entry in found.values():
        entry["relative"] = entry["max_abs"] / max(entry["largest"], 1.0)
    return found


def check_parity(found: Mapping[str, Differences]) -> None:
    """Refuse graphs, by name, of which one computes something else.

    Raises:
        HimalayaError: The output of a graph that differs most, and by how much.
    """
    for graph, outputs in found.items():
        worst = max(outputs, key=lambda name: outputs[name]["relative"])
        difference = outputs[worst]["relative"]
        if difference > TOLERANCE:
            raise HimalayaError(
                f"graph '{graph}': output '{worst}' differs from PyTorch's by {difference:.1e}, "
                f"more than {TOLERANCE:.0e}"
            )


@torch.no_grad()
def decoder_cases(model: PeftModel, tokens: Sequence[int], rows: int) -> list[Case]:
    """What a language model computes as it is switched, first without a past, then for one more token.

    Args:
        model: The model.
        tokens: Token ids.
        rows: Of the batch, all with the same tokens.
    """
    inputs = torch.tensor([tokens]).repeat(rows, 1)
    cases: list[Case] = []
    cache: Any = None
    past: list[Tensor] = []
    for new in (inputs[:, :-1].contiguous(), inputs[:, -1:].contiguous()):
        outputs = model(input_ids=new, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        present = [one for layer in cache.layers for one in (layer.keys, layer.values)]
        past = past or [one[:, :, :0] for one in present]
        names = cache_names(len(cache.layers))
        given = {
            "input_ids": new,
            "attention_mask": torch.ones(rows, past[0].shape[2] + new.shape[1], dtype=torch.long),
            "task": torch.arange(rows),
            **{PAST + name: one for name, one in zip(names, past, strict=True)},
        }
        presents = {PRESENT + name: one for name, one in zip(names, present, strict=True)}
        cases.append((given, {"logits": outputs.logits, **presents}))
        past = present
    return cases
