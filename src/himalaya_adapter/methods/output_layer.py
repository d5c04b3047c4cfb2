"""What stands in for a module whose output is edited, as decoder layers' hidden states are."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .targets import TargetLayer


class OutputLayer(TargetLayer):
    """Runs ``base_layer`` and edits what it returns, for every active adapter; of a tuple the first element.

    Hidden states that transformers records (``output_hidden_states``) are those before the edit of their layer. There
    is no weight that an edit could be merged into. Adapters keep their own precision.
    """

    no_weight: str  # what can be done instead of merging

    def __getattr__(self, name: str) -> Any:
        # Models ask their layers what kind they are ("attention_type").
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    @abstractmethod
    def edited(
        self, name: str, output: Tensor, original: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """The output with the edit of one adapter.

        Args:
            name: The adapter's.
            output: What the base layer returned, with the edits of adapters before this one.
            original: What it returned.
            args: Positional inputs of the base layer.
            kwargs: Its other inputs.
        """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer and edit its output."""
        result = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return result
        original = output = result[0] if isinstance(result, tuple) else result
        for name in self.active_adapters:
            if name in getattr(self, self.adapter_layer_names[0]):
                output = self.edited(name, output, original, args, kwargs)
        return (output, *result[1:]) if isinstance(result, tuple) else output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible.

        Raises:
            NotImplementedError: Always; the message says what can be done.
        """
        raise NotImplementedError(self.no_weight)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        # A decoder layer has no weight of its own to ask, and the adapter keeps its own precision.
        parameter = next(base_layer.parameters(), None)
        return None if parameter is None else parameter.device, None
