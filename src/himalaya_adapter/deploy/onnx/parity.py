"""How far a graph's outputs in ONNX Runtime are from PyTorch's, both in 32 bits."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from himalaya_adapter.errors import HimalayaError

from .writing import PAST_PREFIX, PRESENT_PREFIX

# Largest difference, relative to the largest entry of PyTorch's output where that is above 1.
TOLERANCE = 1e-5

# Inputs, and what PyTorch returns for them, by the names of inputs and outputs.
Case = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """A graph in ONNX Runtime on the CPU; ``threads`` 0 takes all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare(session: onnxruntime.InferenceSession, cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """The differences of each output over all cases.

    Args:
        session: The graph.
        cases: What PyTorch returns for which inputs; those that the graph does not have are left out.

    Returns:
        For each output ``max_abs``, the largest absolute difference, ``largest``, the largest entry of PyTorch's
        output, and ``relative``, the first divided by the larger of the second and 1.
    """
    found: dict[str, dict[str, float]] = {}
    taken = {entry.name for entry in session.get_inputs()}
    for inputs, expected in cases:
        names = list(expected)
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items() if name in taken})
        for name, output in zip(names, outputs, strict=True):
            wanted = expected[name].numpy()
            if output.shape != wanted.shape:
                raise HimalayaError(
                    f"output '{name}' has shape {output.shape} in ONNX Runtime, {wanted.shape} in torch"
                )
            entry = found.setdefault(name, {"max_abs": 0.0, "largest": 0.0})
            difference = np.nan_to_num(np.abs(output - wanted), nan=np.inf)
            entry["max_abs"] = max(entry["max_abs"], float(difference.max(initial=0)))
            entry["largest"] = max(entry["largest"], float(np.abs(wanted).max(initial=0)))
    for entry in found.values():
        entry["relative"] = entry["max_abs"] / max(entry["largest"], 1.0)
    return found


def check_parity(graph: str, outputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a graph that computes something else.

    Raises:
        HimalayaError: The output that differs most, and by how much.
    """
    worst = max(outputs, key=lambda name: outputs[name]["relative"])
    difference = outputs[worst]["relative"]
    if difference > TOLERANCE:
        raise HimalayaError(
            f"graph '{graph}': output '{worst}' differs from PyTorch's by {difference:.1e}, more than {TOLERANCE:.0e}"
        )


def decoder_cases(
    run: Callable[..., Any], rows: int, inputs: Tensor, names: tuple[str, str], before_row: Callable[[int], Any]
) -> list[Case]:
    """What PyTorch's decoder computes, first without a past, then for one more token of each row.

    Args:
        run: The model.
        rows: Of the batch, all with the same inputs.
        inputs: Token ids ``(1, n + 1)``, or embeddings ``(1, n + 1, d)``.
        names: Of this input and of the first output.
        before_row: Called with a row's number before it is computed: to switch to its task.
    """
    steps: list[list[list[Tensor]]] = [[], []]
    for row in range(rows):
        before_row(row)
        cache = None
        for step, new in zip(steps, (inputs[:, :-1], inputs[:, -1:]), strict=True):
            with torch.no_grad():
                outputs = run(**{names[0]: new}, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            step.append([outputs[0], *(one for layer in cache.layers for one in (layer.keys, layer.values))])
    first, second = ([torch.cat(one) for one in zip(*step, strict=True)] for step in steps)
    caches = [f"{layer}.{kind}" for layer in range((len(first) - 1) // 2) for kind in ("key", "value")]
    empty = [one[:, :, :0] for one in first[1:]]
    cases: list[Case] = []
    for new, past, outputs in ((inputs[:, :-1], empty, first), (inputs[:, -1:], first[1:], second)):
        seen = past[0].shape[2] + new.shape[1]
        cases.append(
            (
                {
                    names[0]: new.expand(rows, *new.shape[1:]).contiguous(),
                    "attention_mask": torch.ones(rows, seen, dtype=torch.long),
                    "task": torch.arange(rows),
                    **{PAST_PREFIX + name: one for name, one in zip(caches, past, strict=True)},
                },
                dict(zip([names[1], *(PRESENT_PREFIX + name for name in caches)], outputs, strict=True)),
            )
        )
    return cases
