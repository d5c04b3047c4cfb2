"""COLTAS, a reconstruction: each task moves some components of one low-rank adapter (docs/methods.md)."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftType
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from himalaya_adapter.errors import HimalayaError

from .events import Event
from .linear_delta import LinearDeltaLayer, LinearDeltaModel
from .merging import refuse_if_merged
from .shared_state import SharedState, SharedStateModel
from .targets import TargetsConfig

NEUTRAL_TASK = ""  # plain PEFT use, without a stream, is one task without a name


@dataclass
class ColtasConfig(TargetsConfig):
    """
    Configuration of a [`ColtasModel`]. Beside the fields of [`TargetsConfig`]:

    Args:
        components (`int`):
            Rank of the low-rank adapter that all tasks share; a multiple of `mask_atoms`. More leave tasks more apart,
            and cost storage in proportion. Start from 32.
        mask_atoms (`int`): Masks in the dictionary, each of `components / mask_atoms` components. Start from 16.
        atoms_per_task (`int`):
            Masks whose union is a task's mask: its rank is `atoms_per_task * components / mask_atoms`. More learn a
            task better and share more of it with others. Start from 4.
    """

    components: int = 32
    mask_atoms: int = 16
    atoms_per_task: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.COLTAS
        if self.components % self.mask_atoms:
            raise ValueError(f"components={self.components} is not a multiple of mask_atoms={self.mask_atoms}")
        if self.atoms_per_task > self.mask_atoms:
            raise ValueError(f"atoms_per_task={self.atoms_per_task} exceeds mask_atoms={self.mask_atoms}")


def task_components(name: str, config: ColtasConfig) -> Tensor:
    """The components in the union of the masks that the hash of a task's name chooses: int64, ascending.

    The masks part the components evenly, so that a union's size is known. Their numbers are put in the order of the
    SHA-256 of number and name, and the first are taken: the same on every machine, and nothing is stored per task.
    """
    masks = torch.arange(config.components).view(config.mask_atoms, -1)
    order = sorted(range(len(masks)), key=lambda mask: hashlib.sha256(f"{mask} {name}".encode()).digest())
    return masks[sorted(order[: config.atoms_per_task])].flatten()


class TaskMask(SharedState):
    """The components that the current task uses, the same in all layers: ``used``, int64."""

    def __init__(self, config: ColtasConfig) -> None:
        super().__init__()
        self.config = config
        self.used = nn.Buffer(task_components(NEUTRAL_TASK, config))

    @property
    def unused(self) -> Tensor:
        """Mask of the other components, ``(components,)``."""
        return ~torch.isin(torch.arange(self.config.components, device=self.used.device), self.used)


class ColtasLayer(LinearDeltaLayer):
    r"""One LoRA of which each task uses some components: :math:`\Delta W_t = s\,B\,\mathrm{diag}(m_t)\,A`.

    The layer owns ``coltas_A``, ``(components, in)``, and ``coltas_B``, ``(out, components)``, as a LoRA does: with
    ``B = 0`` at the start the update is zero. Only the components of the current task are computed with, so all
    others have no gradient.
    """

    adapter_layer_names = ("coltas_A", "coltas_B", "shared")
    coltas_A: nn.ParameterDict
    coltas_B: nn.ParameterDict

    def add_adapter(self, name: str, config: ColtasConfig) -> None:
        """Start as PEFT's LoRA does."""
        inward = torch.empty(config.components, self.in_features)
        nn.init.kaiming_uniform_(inward, a=math.sqrt(5))
        shape = self.out_features, config.components
        outward = torch.zeros(shape) if config.init_weights else torch.randn(shape) / self.out_features**0.5
        self.coltas_A[name], self.coltas_B[name] = nn.Parameter(inward), nn.Parameter(outward)

    def factors(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """As in the class's formula, without the components that the mask leaves out."""
        used = self.shared[name].used
        return [(self.coltas_A[name][used], self.coltas_B[name][:, used])]


class ColtasModel(LinearDeltaModel, SharedStateModel):
    """Adapts linear modules and owns the adapters' masks, one `TaskMask` per adapter name."""

    prefix = "coltas_"
    tuner_layer_cls = ColtasLayer
    separates_tasks = True
    switches_tasks = True

    def set_task(self, name: str | None) -> None:
        """Answer as task ``name`` from now on.

        Raises:
            HimalayaError: No task is named; or an adapter is merged: the weights are those of its task.
        """
        if name is None:
            raise HimalayaError("COLTAS cannot tell a task from its prompt: name one")
        refuse_if_merged(self.model, f"set_task('{name}')")
        for mask in self._active():
            mask.used.copy_(task_components(name, mask.config))

    def start_task(self, name: str, examples: Mapping[str, Any] | None = None) -> list[Event]:
        """Begin to learn task ``name``: its components, in the state in which earlier tasks left them.

        Args:
            name: The task's name; its hash chooses the masks.
            examples: Not looked at.
        """
        self.set_task(name)
        return []

    def protect(
        self, optimizer: torch.optim.Optimizer, on_event: Callable[[Event], None] | None = None
    ) -> list[RemovableHandle]:
        """Let steps of ``optimizer`` move the current task's components only; ``remove()`` the handles to stop.

        The others have no gradient, but weight decay and momentum would move them too.

        Args:
            optimizer: The optimiser that trains the adapter.
            on_event: Never called: nothing happens inside a task.
        """
        before: list[tuple[Tensor, Tensor, Tensor]] = []

        def remember(*_: Any) -> None:
            before[:] = [
                (components, unused, components[unused])
                for name, unused in zip(self.active_adapters, [mask.unused for mask in self._active()], strict=True)
                for layer in self._layers(name)
                for components in (layer.coltas_A[name].detach(), layer.coltas_B[name].detach().mT)
            ]

        def put_back(*_: Any) -> None:
            for components, unused, content in before:
                components[unused] = content

        return [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(put_back)]

    def _new_shared_state(self, config: ColtasConfig, targets: Sequence[nn.Module], model: nn.Module) -> TaskMask:
        return TaskMask(config)
