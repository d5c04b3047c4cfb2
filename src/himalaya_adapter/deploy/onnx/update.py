"""What stands in for an adapter while a graph is exported: the operators, and the tables that they look up."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from himalaya_adapter.methods.himalaya import HimalayaAdapter
from himalaya_adapter.methods.himalaya.channels import sizes_of
from himalaya_adapter.methods.himalaya.tasks import COEFFICIENT_STEP
from himalaya_adapter.methods.himalaya.update import layer_anchors
from himalaya_adapter.methods.quantization import unpack_codes

from .operator import DOMAIN, VERSION
from .parity import Case


def make_tables(adapter: HimalayaAdapter, tasks: Sequence[str]) -> dict[str, Tensor]:
    """The tables of `operator.Vectors` in its order: of the dictionary the core, and those atoms that these tasks use.

    Raises:
        HimalayaError: A task that the adapter does not know.
    """
    table, dictionary = adapter.tasks, adapter.dictionary
    rows = torch.tensor([table.row_of(name) for name in tasks])
    coefficients, core = table.coefficients[rows], len(dictionary.core)
    terms = 1 + max(coefficients.nonzero()[:, 2].tolist(), default=0)
    coefficients = coefficients[:, :, :terms]
    numbers = torch.where(coefficients != 0, table.numbers[rows][:, :, :terms].long(), 0)
    kept = torch.cat([torch.arange(core), numbers.unique()]).unique()  # sorted: the core comes first
    parts = dictionary.row_format.parts(torch.cat([dictionary.core, dictionary.elastic])[kept])
    bits = dictionary.row_format.bits
    codes = unpack_codes(parts["codes"], len(parts["codes"]) * 8 // bits, bits)
    return {
        "numbers": torch.searchsorted(kept, numbers),
        "coefficients": coefficients,
        "codes": codes.view(*parts["scale"].shape, -1),
        "scale": parts["scale"].float()[..., None],
        "minimum": parts["minimum"].float()[..., None],
        "signs": layer_anchors(torch.eye(core), adapter.update.layers, adapter.config.seed),
        "layer_codes": adapter.update.codes,
        "channels": sizes_of(adapter.channels),
    }


class ExportedUpdate(nn.Module):
    """The vectors of all layers as one node, and the update of each layer as one.

    Args:
        adapter: The adapter.
        tasks: Those that the graph knows, in the order of their numbers.
    """

    def __init__(self, adapter: HimalayaAdapter, tasks: Sequence[str]) -> None:
        super().__init__()
        self.width, self.layers = adapter.width, adapter.update.layers
        self.attributes: dict[str, Any] = {
            "width": adapter.width,
            "step": COEFFICIENT_STEP,
            "bound": adapter.config.norm_bound,
        }
        for name, tensor in make_tables(adapter, tasks).items():
            self.register_buffer(name, tensor.contiguous())
        self._run = SimpleNamespace(vectors=[])  # torch.export minds tensors that are set on a module

    def forward(self, task: Tensor) -> Sequence[Tensor]:
        """Write vectors ``(b, L, d)`` and read vectors ``(b, d, L)`` for the tasks of the rows ``(b,)``."""
        return torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::Vectors",
            [task, *self.buffers()],
            self.attributes,
            dtypes=(torch.float32, torch.float32),
            shapes=((task.shape[0], self.layers, self.width), (task.shape[0], self.width, self.layers)),
            version=VERSION,
        )

    def begin_run(self, task: Tensor) -> None:
        """Make the vectors of a pass for the tasks of the rows ``(b,)``."""
        write, read = self(task)
        self._run.vectors = list(zip(write.split(1, 1), read.split(1, 2), strict=True))

    def of_layer(self, number: int, hidden_states: Tensor) -> Tensor:
        """The output ``(b, s, d)`` of a layer with its update."""
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Update",
            [hidden_states, *self._run.vectors[number]],
            dtype=torch.float32,
            shape=hidden_states.shape,
            version=VERSION,
        )


def vectors_graph(update: ExportedUpdate, opset: int) -> ir.Model:
    """The adapter alone as a graph: input ``task``, outputs ``write`` and ``read``."""
    task = ir.val("task", ir.DataType.INT64, ["batch"])
    tables = [ir.val(name, const_value=ir.tensor(one, name=name)) for name, one in update.named_buffers()]
    outputs = [
        ir.val("write", ir.DataType.FLOAT, ["batch", update.layers, update.width]),
        ir.val("read", ir.DataType.FLOAT, ["batch", update.width, update.layers]),
    ]
    node = ir.node("Vectors", [task, *tables], update.attributes, domain=DOMAIN, outputs=outputs)
    imports = {"": opset, DOMAIN: VERSION}
    graph = ir.Graph([task], outputs, nodes=[node], initializers=tables, opset_imports=imports, name="adapter")
    return ir.Model(graph, ir_version=1)


def vectors_cases(adapter: HimalayaAdapter, tasks: Sequence[str]) -> list[Case]:
    """The vectors that PyTorch makes of each task, for parity: one case with all tasks, one with the last."""
    rows = [adapter.tasks.row_of(name) for name in tasks]
    atoms = torch.stack([adapter.task_atoms(row) for row in rows])
    write, read = adapter.update.vectors(atoms, sizes_of(adapter.channels))
    task, outputs = torch.arange(len(rows)), {"write": write, "read": read.mT}
    return [({"task": task[at:]}, {name: one[at:] for name, one in outputs.items()}) for at in (0, -1)]
