"""What stands in for an adapted module: its base layer plus the shared adapter's update."""

from typing import Any

from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn

from himalaya_adapter.methods.merging import MergeableLayer

from .adapter import StrictAdapter

PER_TOKEN = "HIMALAYA_STRICT cannot be merged: its update differs from token to token. Keep the adapter attached."


class HimalayaStrictLayer(nn.Module, MergeableLayer):
    """Adds to the output of ``base_layer`` the rank-one update of every active adapter.

    The layer owns no parameter: it only refers to the adapters' shared state, which lives on the tuner. The update
    depends on the token, so it cannot be merged into a weight.
    """

    # A plain dictionary, so that torch does not register the shared modules once per layer.
    adapter_layer_names = ("shared",)

    extra_repr = quantization_extra_repr

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(base_layer, **quantization)
        self.in_features = getattr(base_layer, "in_features", None)
        self.out_features = getattr(base_layer, "out_features", None)
        self.merged_adapters: list[str] = []
        self.shared: dict[str, StrictAdapter] = {}

    def get_delta_weight(self, name: str) -> Tensor:
        """There is none: merging is refused.

        Raises:
            NotImplementedError: Always; the message says what can be done.
        """
        raise NotImplementedError(PER_TOKEN)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer and add the updates; a tuple's first element is the one that is updated."""
        result = self.base_layer(hidden_states, *args, **kwargs)
        if self.disable_adapters:
            return result
        first = result[0] if isinstance(result, tuple) else result
        output = first
        for name in self.active_adapters:
            if name in self.shared:
                output = output + self.shared[name](hidden_states, output.shape[-1]).to(output.dtype)
        return (output, *result[1:]) if isinstance(result, tuple) else output
