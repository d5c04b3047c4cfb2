"""What stands in for the shared update while a graph is exported: the operator and what it looks up."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya.active_set import LARGEST_TREE_BONUS, ActiveSet, active_set
from himalaya_adapter.methods.himalaya.tree import LOWEST_LOG_MEMBERSHIP

from .operator import DOMAIN, VERSION
from .tables import SATURATED, Tables, no_tree

Routing = Literal["tree", "dynamic", "guarded", "static"]
Attributes = dict[str, Any]


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
        attributes: Attributes,
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

    task_codes: Tensor
    head_values: Tensor
    head_scale: Tensor
    head_constant: Tensor | None

    def __init__(self, tables: Tables, *, with_tree: bool) -> None:
        count, width = len(tables.codes), tables.projection.shape[1]
        attributes: Attributes = {
            "parts": [count, count, 1],
            "most": tables.most,
            "inverse_temperature": 1 / tables.temperature,
            "root_width": width**0.5 * tables.gain_factor,
        }
        constants = {
            **_projection(tables),
            "codes": tables.codes,
            "scale": tables.scale,
            "minimum": tables.minimum,
            "smoothing": tables.smoothing,
        }
        if with_tree:
            tree = tables.tree or no_tree(tables)
            levels, leaves = tree.log_width.shape
            attributes |= {"levels": levels, "lowest": LOWEST_LOG_MEMBERSHIP, "largest_bonus": LARGEST_TREE_BONUS}
            constants |= {
                "borders": pad(tree.borders, (0, 0, 0, 1)),
                "border_shift": tree.shift,
                "log_width": tree.log_width,
                "leaf_of_atom": pad(tree.leaf, (tables.core_atoms, 0), value=leaves),
            }
        form = "RoutedUpdateWithTree" if with_tree else "RoutedUpdate"
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
        heads = self.task_codes.index_select(0, task) @ self.head_values.float()
        heads = heads.view(self.shape) * self.head_scale
        return [heads if self.head_constant is None else heads + self.head_constant]


class FixedRouteUpdate(ExportedUpdate):
    r"""All tokens of a task use the same atoms, which are looked up once per run.

    With :math:`A` the task's active unit atoms and :math:`A A^\top = L L^\top`, the rows of :math:`Q = L^{-1} A` are
    an orthonormal basis, and :math:`r \propto A^\top u = Q^\top c` with :math:`c = L^\top u` of the same length.

    Args:
        tables: The adapter's.
        sets: The active atoms of each task, without margins.
    """

    def __init__(self, tables: Tables, sets: Sequence[ActiveSet]) -> None:
        route = FixedRoute(tables, sets)
        super().__init__("FixedRouteUpdate", {"fixed_parts": route.parts[:2]}, _projection(tables), route.width)
        self.route = route

    def prepare(self, task: Tensor) -> list[Tensor]:
        """See `FixedRoute`."""
        return self.route(task)


class GuardedUpdate(ExportedUpdate):
    """`FixedRouteUpdate` where a run's tokens all have positive margins, else `RoutedUpdate` with the tree.

    Args:
        tables: The adapter's.
        sets: The usual atoms of each task.
    """

    def __init__(self, tables: Tables, sets: Sequence[ActiveSet]) -> None:
        route, routed = FixedRoute(tables, sets), RoutedUpdate(tables, with_tree=True)
        constants = {name: getattr(routed, name) for name in routed.constants}
        super().__init__("GuardedUpdate", {"fixed_parts": route.parts, **routed.attributes}, constants, route.width)
        self.route, self.routed = route, routed

    def prepare(self, task: Tensor) -> list[Tensor]:
        """See `FixedRoute` and `RoutedUpdate`."""
        return [*self.route(task), *self.routed.prepare(task)]


class FixedRoute(nn.Module):
    """What the fixed routes look up once per run.

    Args:
        tables: The adapter's.
        sets: The usual atoms of each task.
    """

    indices: Tensor
    bases: Tensor
    heads: Tensor
    codes: Tensor
    scale: Tensor
    minimum: Tensor
    smoothing: Tensor

    def __init__(self, tables: Tables, sets: Sequence[ActiveSet]) -> None:
        super().__init__()
        count, (latent, width) = len(tables.codes), tables.projection.shape
        self.width, most = width, max(len(one.atoms) for one in sets)
        self.parts = [most, 1, max(len(one.margins) for one in sets)]
        self.factor = width**0.5 * tables.gain_factor
        indices = torch.zeros(len(sets), most, dtype=torch.long)
        bases = torch.zeros(len(sets), most, most)
        heads = torch.zeros(len(sets), latent + 1, sum(self.parts))
        heads[:, -1, most + 1 :] = 1  # a task with fewer margins than another has some that always hold
        for task, ((atoms, margins), head) in enumerate(zip(sets, tables.task_heads.double(), strict=True)):
            used = len(atoms)
            chosen = tables.atoms[atoms].double()
            factor = torch.linalg.cholesky(chosen @ chosen.T)
            indices[task, :used] = atoms
            bases[task, :used, :used] = torch.linalg.inv(factor).float()
            heads[task, :, :used] = (factor.T @ head[count + atoms]).T.float()
            heads[task, :, most] = head[-1].float()
            heads[task, :, most + 1 :][:, : len(margins)] = margins.T
        if tables.fixed_gain:
            heads[:, :, most] = 0
            heads[:, -1, most] = SATURATED
        lookups = {
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

    def forward(self, task: Tensor) -> list[Tensor]:
        """The maps inward ``(b, d, q)`` and outward ``(b, q, d)``, the heads ``(b, p + 1, q + 1 + m)``."""
        atoms = self.indices.index_select(0, task)
        codes, scale, minimum = (_looked_up(one, atoms) for one in (self.codes, self.scale, self.minimum))
        basis = self.bases.index_select(0, task) @ ((codes.float() * scale + minimum).flatten(2) * self.smoothing)
        return [basis.mT * self.factor, basis, self.heads.index_select(0, task)]


def _projection(tables: Tables) -> dict[str, Tensor]:
    """From a direction to the latents before their tanh, and to the constant that is 1 after it."""
    root = tables.projection.shape[1] ** 0.5
    return {
        "projection": pad(tables.projection.T * root, (0, 1)),
        "shift": pad(-tables.offset, (0, 1), value=SATURATED),
    }


def _looked_up(table: Tensor, indices: Tensor) -> Tensor:
    """Rows of a table for indices ``(b, q)``, in a way that becomes one Gather."""
    return torch.embedding(table.flatten(1), indices).unflatten(2, table.shape[1:])


def exported_update(tables: Tables, routing: Routing | None = None) -> ExportedUpdate:
    """The fastest form that computes the same, or the one asked for.

    Args:
        tables: The adapter's.
        routing: ``"tree"`` chooses the atoms for each token, ``"dynamic"`` does so without the tree, ``"static"``
            looks them up once per run, ``"guarded"`` does so unless a token of the run needs others. By default
            static where that is proved for all tasks, else guarded.

    Raises:
        HimalayaError: The form asked for would compute something else for a task.
    """
    count, first_elastic = len(tables.codes), None if tables.tree is None else tables.core_atoms
    sets = [active_set(head[:count], tables.most, tables.temperature, first_elastic) for head in tables.task_heads]
    unproved = [number for number, one in enumerate(sets) if len(one.margins) > 0]
    if unproved and (routing == "static" or (routing == "dynamic" and tables.tree is not None)):
        raise HimalayaError(
            f"routing '{routing}' is not exact for task number {unproved[0]}: its tokens may use different atoms"
        )
    if routing in ("tree", "dynamic"):
        return RoutedUpdate(tables, with_tree=routing == "tree" and tables.tree is not None)
    if routing == "guarded" or unproved:
        return GuardedUpdate(tables, sets)
    return FixedRouteUpdate(tables, sets)
