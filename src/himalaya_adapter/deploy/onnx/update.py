"""What stands in for the shared update while a graph is exported: the operator and what it looks up."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya.tree import LOWEST_LOG_MEMBERSHIP
from himalaya_adapter.methods.himalaya.update import LARGEST_TREE_BONUS

from .active_set import fixed_active_set
from .operator import DOMAIN, VERSION
from .tables import SATURATED, Tables

Routing = Literal["tree", "dynamic", "static"]
ROUTINGS: tuple[Routing, ...] = ("tree", "dynamic", "static")


class ExportedUpdate(nn.Module):
    """The update of a module's output as one node; what all layers share is looked up once per run of the graph.

    Called in place of `SharedAdapter`, with the inputs ``(b, s, d)`` of a layer.

    Args:
        function: The operator's form.
        attributes: Its attributes.
        constants: Its constant inputs by name, in their order, after those that `prepare` returns.
        width: Of the hidden states.
    """

    def __init__(
        self,
        function: str,
        attributes: dict[str, int | float | Sequence[int]],
        constants: dict[str, Tensor],
        width: int,
    ) -> None:
        super().__init__()
        self.function, self.attributes, self.constants, self.width = function, attributes, tuple(constants), width
        for name, tensor in constants.items():
            self.register_buffer(name, tensor.contiguous())
        self._run = SimpleNamespace(inputs=[])  # torch.export minds tensors that are set on a module

    def begin_run(self, task: Tensor) -> None:
        """Look up what the tasks of the rows need: ``task`` ``(b,)``, numbers of exported tasks."""
        self._run.inputs = [*self.prepare(task), *(getattr(self, name) for name in self.constants)]

    def prepare(self, task: Tensor) -> list[Tensor]:
        """The operator's inputs, after x, that depend on the tasks ``(b,)``."""
        raise NotImplementedError

    def forward(self, x: Tensor, output_width: int) -> Tensor:
        """The update ``(b, s, d)``."""
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.function}",
            [x, *self._run.inputs],
            self.attributes,
            dtype=torch.float32,
            shape=(*x.shape[:-1], output_width),
            version=VERSION,
        )


class RoutedUpdate(ExportedUpdate):
    """Each token chooses its atoms and looks up their codes.

    Args:
        tables: The adapter's.
        with_tree: Whether the tree takes part.
    """

    def __init__(self, tables: Tables, *, with_tree: bool) -> None:
        count, width = len(tables.codes), tables.projection.shape[1]
        attributes: dict[str, int | float | Sequence[int]] = {
            "parts": [count, count, 1],
            "most": tables.most,
            "inverse_temperature": 1 / tables.temperature,
            "root_width": width**0.5 * tables.gain_factor,
        }
        constants = {
            "projection": pad(tables.projection.T * width**0.5, (0, 1)),
            "shift": pad(-tables.offset, (0, 1), value=SATURATED),
            "codes": tables.codes,
            "scale": tables.scale,
            "minimum": tables.minimum,
            "smoothing": tables.smoothing,
        }
        if with_tree and tables.tree is not None:
            levels, leaves = tables.tree.log_width.shape
            attributes |= {"levels": levels, "lowest": LOWEST_LOG_MEMBERSHIP, "largest_bonus": LARGEST_TREE_BONUS}
            constants |= {
                "borders": pad(tables.tree.borders, (0, 0, 0, 1)),
                "border_shift": tables.tree.shift,
                "log_width": tables.tree.log_width,
                "leaf_of_atom": pad(tables.tree.leaf, (tables.core_atoms, 0), value=leaves),
            }
        form = "RoutedUpdateWithTree" if "borders" in constants else "RoutedUpdate"
        super().__init__(form, attributes, constants, width)
        self.shape = (-1, *tables.heads.shape[1::-1])
        self.register_buffer("task_codes", tables.task_codes)
        self.register_buffer("head_values", tables.heads.permute(2, 1, 0).flatten(1).contiguous())
        fixed = torch.zeros(tables.heads.shape[1::-1])
        scale = tables.head_scale.clone()
        if tables.fixed_gain:
            scale[-1], fixed[-1, -1] = 0, SATURATED
        self.register_buffer("head_scale", scale)
        self.register_buffer("head_constant", fixed if tables.fixed_gain else None)

    def prepare(self, task: Tensor) -> list[Tensor]:
        """The heads, contracted with the tasks' codes: ``(b, p + 1, 2k + 1)``."""
        heads = self.task_codes[task] @ self.head_values.float()
        heads = heads.view(self.shape) * self.head_scale
        return [heads if self.head_constant is None else heads + self.head_constant]


class FixedRouteUpdate(ExportedUpdate):
    r"""All tokens of a task use the same atoms, which are looked up once per run.

    With :math:`A` the task's active unit atoms and :math:`A A^\top = L L^\top`, the rows of :math:`Q = L^{-1} A` are
    an orthonormal basis, and :math:`r \propto A^\top u = Q^\top c` with :math:`c = L^\top u` of the same length.

    Args:
        tables: The adapter's.
        active: The active atoms of each task, positions among the atoms in use.
    """

    def __init__(self, tables: Tables, active: Sequence[Tensor]) -> None:
        count, (latent, width) = len(tables.codes), tables.projection.shape
        most = max(len(one) for one in active)
        indices = torch.zeros(len(active), most, dtype=torch.long)
        bases = torch.zeros(len(active), most, most)
        heads = torch.zeros(len(active), latent + 1, most + 1)
        for task, (atoms, head) in enumerate(zip(active, tables.task_heads.double(), strict=True)):
            used = len(atoms)
            chosen = tables.atoms[atoms].double()
            factor = torch.linalg.cholesky(chosen @ chosen.T)
            indices[task, :used] = atoms
            bases[task, :used, :used] = torch.linalg.inv(factor).float()
            heads[task, :, :used] = (factor.T @ head[count + atoms]).T.float()
            heads[task, :, most] = head[-1].float()
        if tables.fixed_gain:
            heads[:, :, most] = torch.nn.functional.one_hot(torch.tensor(latent), latent + 1) * SATURATED
        super().__init__(
            "FixedRouteUpdate",
            {"latents": [latent + 1, most], "parts": [most, 1]},
            {"shift": pad(pad(-tables.offset, (0, 1), value=SATURATED), (0, most))},
            width,
        )
        self.factor = width**0.5 * tables.gain_factor
        lookups = {
            "projection": pad(tables.projection.T * width**0.5, (0, 1))[None],
            "codes": tables.codes,
            "scale": tables.scale,
            "minimum": tables.minimum,
            "smoothing": tables.smoothing,
            "indices": indices,
            "bases": bases,
            "heads": heads,
        }
        for name, tensor in lookups.items():
            self.register_buffer(name, tensor.contiguous())

    def prepare(self, task: Tensor) -> list[Tensor]:
        """The map inward ``(b, d, p + 1 + q)``, the heads ``(b, p + 1, q + 1)`` and the bases ``(b, q, d)``."""
        atoms = self.indices[task]
        values = self.codes[atoms].float() * self.scale[atoms] + self.minimum[atoms]
        basis = self.bases[task] @ (values.flatten(2) * self.smoothing)
        projection = self.projection.expand(task.shape[0], -1, -1)
        return [torch.cat([projection, basis.mT * self.factor], dim=2), self.heads[task], basis]


def exported_update(tables: Tables, routing: Routing | None = None) -> ExportedUpdate:
    """The fastest form that computes the same, or the one asked for.

    Args:
        tables: The adapter's.
        routing: ``"tree"`` and ``"dynamic"`` choose the atoms for each token, with the tree and without; ``"static"``
            looks them up once per run. By default static where it is proved for all tasks, else with the tree.

    Raises:
        HimalayaError: The form asked for would compute something else for a task.
    """
    active = [fixed_active_set(tables, task) for task in range(len(tables.task_codes))]
    proved = [one for one in active if one is not None]
    if routing in ("dynamic", "static") and len(proved) < len(active) and (routing == "static" or tables.tree):
        number = next(number for number, one in enumerate(active) if one is None)
        raise HimalayaError(f"routing '{routing}' is not exact for task {number}: its tokens may use different atoms")
    if len(proved) == len(active) and routing in (None, "static"):
        return FixedRouteUpdate(tables, proved)
    return RoutedUpdate(tables, with_tree=routing != "dynamic")
