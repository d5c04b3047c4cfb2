"""What stands in for an adapted module: its base layer plus the shared adapter's update."""

from typing import Any

from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn

from himalaya_adapter.methods.merging import MergeableLayer

from .freezing import BESIDE_THE_WEIGHTS, PER_TOKEN, static_factors
from .shared import SharedAdapter


class HimalayaStrictLayer(nn.Module, MergeableLayer):
    """Adds to the output of ``base_layer`` the rank-one update of every active adapter.

    The layer owns no parameter: it only refers to the adapters' shared state, which lives on the tuner. The update
    depends on the token; it can be merged into the weight of a linear module while the routing is frozen.
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
        self.shared: dict[str, SharedAdapter] = {}

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """``A``, ``(1, in)``, and ``B``, ``(out, 1)``, of the frozen update of a linear module's weight, ``B A``.

        Raises:
            NotImplementedError: The update is not one of a weight, or differs from token to token; the message says
                what can be done.
        """
        shared = self.shared[name]
        base: Any = self.get_base_layer()
        if shared.config.placement != "weights":
            raise NotImplementedError(BESIDE_THE_WEIGHTS.format(type(base).__name__))
        if not shared.frozen:
            raise NotImplementedError(PER_TOKEN)
        return static_factors(shared, base.in_features, base.out_features)

    def get_delta_weight(self, name: str) -> Tensor:
        """The frozen update of the weight, ``(out, in)``.

        Raises:
            NotImplementedError: As `factors`.
        """
        down, up = self.factors(name)
        return up @ down

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT's ``convert_to_lora`` can write the adapter, at rank 1 and exactly: as `merge`."""
        shared = self.shared.get(adapter_name)
        return shared is not None and shared.frozen and shared.config.placement == "weights"

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer and add the updates; a tuple's first element is the one that is updated."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(hidden_states, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        first = result[0] if isinstance(result, tuple) else result
        output = first
        for name in self.active_adapters:
            if name in self.shared:
                output = output + self.shared[name](hidden_states, output.shape[-1]).to(output.dtype)
        return (output, *result[1:]) if isinstance(result, tuple) else output
