"""What stands in for an adapted module: its base layer plus the shared adapter's update."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from himalaya_adapter.methods.output_layer import OutputLayer

from .adapter import StrictAdapter


class HimalayaStrictLayer(OutputLayer):
    """Adds to the output of ``base_layer`` the rank-one update of every active adapter.

    The layer owns no parameter: it only refers to the adapters' shared state, which lives on the tuner.
    """

    adapter_layer_names = ("shared",)
    no_weight = "HIMALAYA_STRICT cannot be merged: its update differs from token to token. Keep the adapter attached."

    def __init__(self, base_layer: nn.Module, **_: Any) -> None:
        super().__init__(base_layer)
        # A plain dictionary, so that torch does not register the shared modules once per layer.
        self.shared: dict[str, StrictAdapter] = {}

    def edited(
        self, name: str, output: Tensor, original: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Add an adapter's update, which depends on the module's input."""
        hidden_states = args[0] if args else kwargs["hidden_states"]
        return output + self.shared[name](hidden_states, output.shape[-1]).to(output.dtype)
