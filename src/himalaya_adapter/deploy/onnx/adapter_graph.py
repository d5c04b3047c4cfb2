"""The adapter alone as a graph: inputs ``x`` and ``task``, output ``update``."""

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

from himalaya_adapter.methods.himalaya import SharedAdapter

from .parity import Case
from .update import ExportedUpdate
from .writing import export_module, name_dimensions


class AdapterGraph(nn.Module):
    """From inputs ``x`` ``(b, s, d)`` of an adapted module and tasks ``(b,)`` to the update of its output.

    Args:
        update: What stands in for the adapter.
    """

    def __init__(self, update: ExportedUpdate) -> None:
        super().__init__()
        self.update = update

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """The update ``(b, s, d)``."""
        self.update.begin_run(task)
        return self.update(x, x.shape[-1])


def adapter_graph(update: ExportedUpdate, width: int, opset: int) -> ir.Model:
    """The graph of an adapter of this width."""
    inputs = {"x": torch.randn(2, 3, width), "task": torch.zeros(2, dtype=torch.long)}
    dynamic = {"x": (0, 1), "task": (0,)}
    exported = export_module(AdapterGraph(update), inputs, dynamic, (["x", "task"], ["update"]), opset)
    name_dimensions(exported, {"x": {0: "batch", 1: "sequence"}, "task": {0: "batch"}})
    return exported


def adapter_cases(shared: SharedAdapter, tasks: Sequence[str], states: Tensor) -> list[Case]:
    """What PyTorch's adapter computes, for parity.

    Args:
        shared: The adapter, with the values of its release file.
        tasks: The exported tasks.
        states: Inputs of adapted modules, ``(n, d)``.

    Returns:
        One case with a row of the same tokens per task; one with a single token.
    """
    updates = []
    with torch.no_grad():
        for task in tasks:
            shared.set_task(task)
            updates.append(shared(states, states.shape[-1]))
    x, number = states.expand(len(tasks), -1, -1).contiguous(), torch.arange(len(tasks))
    update = torch.stack(updates)
    return [
        ({"x": x, "task": number}, {"update": update}),
        ({"x": x[-1:, :1], "task": number[-1:]}, {"update": update[-1:, :1]}),
    ]
