r"""What methods have in common that add a static low-rank matrix to linear modules: :math:`W + \Delta W`."""

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftType
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from torch.nn.functional import linear

from .targets import TargetLayer, TargetsModel

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2")
# By a model's type, the projections of its attention.
ATTENTION = {model_type: ["q_proj", "k_proj", "v_proj", "o_proj"] for model_type in LLAMA_LIKE} | {
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "phi3": ["qkv_proj", "o_proj"],
}
# Of every update: what a LoRA of the usual alpha = 2 r has.
SCALING = 2.0


class LinearDeltaLayer(TargetLayer):
    r"""Adds to the output of a linear module the low-rank update of every active adapter, or to its weight.

    The layer of a method says with `factors` which products :math:`\Delta W = s \sum B A` consists of. It does not
    depend on the token, so it can be merged. Adapters stay in 32 bits whatever the precision of the base layer is.
    """

    extra_repr = quantization_extra_repr

    def __init__(self, base_layer: nn.Linear, **quantization: Any) -> None:
        super().__init__(base_layer)
        self.quantization_backend = resolve_quantization_backend(base_layer, **quantization)
        self.in_features = base_layer.in_features
        self.out_features = base_layer.out_features
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        for parameters in self.adapter_layer_names:
            if parameters != "shared":
                setattr(self, parameters, nn.ParameterDict())

    @abstractmethod
    def add_adapter(self, name: str, config: Any) -> None:
        """Fill in this layer's parameters of adapter ``name``; what layers share, if anything, is in `shared`."""

    @abstractmethod
    def factors(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """``A``, shape ``(r, in)``, and ``B``, shape ``(out, r)``, of each product of adapter ``name``."""

    def factors_for(self, name: str, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """`factors` for inputs ``x`` ``(b, s, in)``; ``(b, r, in)`` and ``(b, out, r)`` where rows have their own."""
        return self.factors(name)

    def scale(self, name: str) -> float:
        """By which the products of adapter ``name`` are multiplied."""
        return SCALING

    def get_delta_weight(self, name: str) -> Tensor:
        """The update of the weight, ``(out, in)``."""
        first, *others = (up @ down for down, up in self.factors(name))
        return self.scale(name) * sum(others, first)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' updates to the base layer's weight.

        Args:
            safe_merge: First check that the merged weight is finite.
            adapter_names: Which adapters; the active ones by default.

        Raises:
            NotImplementedError: The weight is quantised.
            ValueError: With ``safe_merge``, a merged weight would not be finite; the weight is as it was.
        """
        if self.quantization_backend is not None:
            raise NotImplementedError(
                f"merging into a quantised weight ({self.quantization_backend.backend_name}) would round the update "
                "away: keep the adapter attached, or merge it into the model loaded without quantisation"
            )
        for name in check_adapters_to_merge(self, adapter_names):
            if self._has(name):
                merged = self._delta(name) + self._weight()
                if safe_merge and not merged.isfinite().all():
                    # In PEFT's words.
                    raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
                self._weight().copy_(merged)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take the merged updates out of the base layer's weight, to rounding."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            self._weight().sub_(self._delta(self.merged_adapters.pop()))

    def _has(self, name: str) -> bool:
        return name in getattr(self, self.adapter_layer_names[0])

    def _weight(self) -> Tensor:
        weight = self.get_base_layer().weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    @torch.no_grad()
    def _delta(self, name: str) -> Tensor:
        return self.get_delta_weight(name).to(self._weight())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the base layer and add the updates."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name in self.active_adapters:
            for down, up in self.factors_for(name, x) if self._has(name) else ():
                inner = _product(self._cast_input_dtype(x, down.dtype), down)
                result = result + (_product(inner, up) * self.scale(name)).to(result.dtype)
        return result

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's own version also casts to the base layer's precision.
        device = self._weight().device if device is None else device
        for container in (getattr(self, name) for name in self.adapter_layer_names + self.other_param_names):
            owned = isinstance(container, nn.ParameterDict | BufferDict) and adapter_name in container
            if owned and not container[adapter_name].is_meta:
                container[adapter_name] = container[adapter_name].to(device)


class LinearDeltaModel(TargetsModel):
    """The tuner of these methods: puts a `LinearDeltaLayer` in the place of each target, which must be linear.

    By default those are the projections of each layer's attention.
    """

    target_module_mapping = ATTENTION

    def _check_target(self, base: nn.Module, config: PeftConfig, key: str) -> None:
        if not isinstance(base, nn.Linear):
            raise TypeError(
                f"target '{key}' is a {type(base).__name__}, not a linear module; "
                f"{PeftType(config.peft_type).value} adapts linear modules only: name those in target_modules"
            )

    def _add_adapter(self, layer: LinearDeltaLayer, name: str, config: PeftConfig) -> None:
        super()._add_adapter(layer, name, config)
        layer.add_adapter(name, config)
        layer._move_adapter_to_device_of_base_layer(name)

    def _layers(self, name: str) -> list[Any]:
        """The layers that adapter ``name`` has a part of."""
        layers: Iterator[Any] = (one for one in self.model.modules() if isinstance(one, self.tuner_layer_cls))
        return [layer for layer in layers if layer._has(name)]


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    return linear(x, matrix) if matrix.dim() == 2 else x @ matrix.mT


def widths(targets: Sequence[nn.Module]) -> tuple[int, int]:
    """The largest numbers of input and output features of linear modules.

    Targets that are not linear have none; they are refused by name when their turn comes.
    """
    features = [(one.in_features, one.out_features) for one in targets if isinstance(one, nn.Linear)]
    return max((one for one, _ in features), default=0), max((one for _, one in features), default=0)
