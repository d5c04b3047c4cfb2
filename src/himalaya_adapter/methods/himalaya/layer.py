"""What stands in for an adapted module: its base layer plus the shared adapter's update."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn

from .shared import SharedAdapter


class HimalayaLayer(nn.Module, BaseTunerLayer):
    """Adds to the output of ``base_layer`` the rank-one update of every active adapter.

    The layer owns no parameter: it only refers to the adapters' shared state, which lives on the tuner. The update
    depends on the token, so it cannot be merged into a weight.
    """

    # A plain dictionary, so that torch does not register the shared modules once per layer.
    adapter_layer_names = ("shared",)
    if TYPE_CHECKING:  # what PEFT's mix-in brings
        active_adapters: list[str]
        disable_adapters: bool
        get_base_layer: Callable[[], nn.Module]
        set_adapter: Callable[[list[str]], None]

    extra_repr = quantization_extra_repr

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(base_layer, **quantization)
        self.in_features = getattr(base_layer, "in_features", None)
        self.out_features = getattr(base_layer, "out_features", None)
        self.shared: dict[str, SharedAdapter] = {}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible.

        Raises:
            NotImplementedError: Always; the message says why.
        """
        raise NotImplementedError(
            "HIMALAYA cannot be merged: its update differs from token to token. Keep the adapter attached."
        )

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
