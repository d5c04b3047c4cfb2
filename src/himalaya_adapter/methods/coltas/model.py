"""COLTAS as a PEFT tuner."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.linear_delta import LinearDeltaModel
from himalaya_adapter.methods.merging import refuse_if_merged
from himalaya_adapter.methods.shared_state import SharedState, SharedStateModel

from .config import ColtasConfig
from .layer import ColtasLayer
from .mask import mask_dictionary, task_components

NEUTRAL_TASK = ""  # plain PEFT use, without a stream, is one task without a name


class TaskMask(SharedState):
    """The components that the current task uses, the same in all layers: ``used``, int64."""

    used: Tensor

    def __init__(self, config: ColtasConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("used", self._components(NEUTRAL_TASK))

    def set_task(self, name: str) -> None:
        """Use the components of task ``name``."""
        self.used.copy_(self._components(name))

    @property
    def unused(self) -> Tensor:
        """The other components, int64."""
        everything = torch.arange(self.config.components, device=self.used.device)
        return everything[~torch.isin(everything, self.used)]

    def _components(self, name: str) -> Tensor:
        dictionary = mask_dictionary(self.config.components, self.config.mask_atoms)
        return task_components(name, dictionary, self.config.atoms_per_task)


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
            mask.set_task(name)

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
        before: list[tuple[Tensor, Any, Tensor]] = []

        def remember(*_: Any) -> None:
            before[:] = [
                (whole, rest, whole[rest].clone())
                for name in self.active_adapters
                for layer in self._layers(name)
                for unused in (self._shared[name].unused,)
                for whole, rest in (
                    (layer.coltas_A[name].detach(), (unused,)),
                    (layer.coltas_B[name].detach(), (slice(None), unused)),
                )
            ]

        def put_back(*_: Any) -> None:
            for whole, rest, content in before:
                whole[rest] = content

        return [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(put_back)]

    def _new_shared_state(self, config: ColtasConfig, targets: Sequence[nn.Module], model: nn.Module) -> TaskMask:
        return TaskMask(config)
