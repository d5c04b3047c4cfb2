"""What stands in for an adapted module: a decoder layer whose output is edited, or a linear module with a LoRA."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .adapter import HimalayaAdapter
from .update import edited

NO_WEIGHT = (
    "the update follows the layer's output, where there is no weight to merge it into: keep the adapter attached, or "
    "learn the tasks with placement='weights', which merges exactly"
)


class HimalayaLayer(BaseTunerLayer):
    """What the layers of both placements have in common."""

    adapter_layer_names: tuple[str, ...] = ("shared",)
    other_param_names: tuple[str, ...] = ("number",)
    if TYPE_CHECKING:  # what PEFT's mix-in brings
        active_adapters: list[str]
        disable_adapters: bool
        get_base_layer: Callable[[], nn.Module]
    # Plain dictionaries, so that torch does not register the shared state once per layer.
    shared: dict[str, HimalayaAdapter]
    number: dict[str, int]  # of the layer, in each adapter


class StreamLayer(nn.Module, HimalayaLayer):
    """Adds :math:`r_l (v_l^T h)` to the output ``h`` of ``base_layer``, for every active adapter.

    It owns no parameter. Hidden states that transformers records are those before the edit of their layer.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.shared = {}
        self.number = {}

    def __getattr__(self, name: str) -> Any:
        # Models ask their layers what kind they are ("attention_type").
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer and edit its output; of a tuple the first element."""
        result = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return result
        hidden_states: Tensor = result[0] if isinstance(result, tuple) else result
        for name in self.active_adapters:
            if name in self.shared:
                write, read = self.shared[name].of_layer(self.number[name], hidden_states)
                hidden_states = edited(hidden_states, write, read)
        return (hidden_states, *result[1:]) if isinstance(result, tuple) else hidden_states

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible.

        Raises:
            NotImplementedError: Always; the message says what can be done.
        """
        raise NotImplementedError(NO_WEIGHT)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        # A decoder layer has no weight of its own to ask, and the adapter keeps its own precision.
        parameter = next(base_layer.parameters(), None)
        return None if parameter is None else parameter.device, None
