"""A linear module with one low-rank adapter per task: those of earlier tasks, frozen, and the present one."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from torch.nn.functional import linear

from .config import OLoraConfig


class OLoraLayer(nn.Module, BaseTunerLayer):
    r"""Adds :math:`s \sum_{i \le t} B_i A_i x` to the output of ``base_layer``, with :math:`s = alpha / r`.

    The present task's :math:`A_t` ``(r, in)`` and :math:`B_t` ``(out, r)`` are parameters, ``o_lora_A`` and
    ``o_lora_B``. Those of earlier tasks are persistent buffers, stacked: ``o_lora_past_A`` is
    :math:`[A_1; \ldots; A_{t-1}]` and ``o_lora_past_B`` is :math:`[B_1 \ldots B_{t-1}]`, so that their sum is one
    product of rank :math:`(t - 1) r`. All of it is a change of the weight and can be merged into it.
    """

    adapter_layer_names = ("o_lora_A", "o_lora_B")
    other_param_names = ("o_lora_past_A", "o_lora_past_B", "scaling")
    if TYPE_CHECKING:  # what PEFT's mix-in brings
        active_adapters: list[str]
        disable_adapters: bool
        merged: bool
        get_base_layer: Callable[[], nn.Module]
        get_base_weight: Callable[[], Tensor]
        set_base_weight: Callable[[Tensor], None]
        set_adapter: Callable[..., None]
        _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]
        _move_adapter_to_device_of_base_layer: Callable[[str], None]

    extra_repr = quantization_extra_repr

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(base_layer, **quantization)
        self.in_features: Any = base_layer.in_features
        self.out_features: Any = base_layer.out_features
        self.o_lora_A = nn.ParameterDict()
        self.o_lora_B = nn.ParameterDict()
        self.o_lora_past_A = BufferDict(persistent=True)
        self.o_lora_past_B = BufferDict(persistent=True)
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: OLoraConfig) -> None:
        """Add an adapter without earlier tasks."""
        self.o_lora_A[adapter_name] = nn.Parameter(torch.empty(config.r, self.in_features))
        self.o_lora_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, config.r))
        self.o_lora_past_A[adapter_name] = torch.empty(0, self.in_features)
        self.o_lora_past_B[adapter_name] = torch.empty(self.out_features, 0)
        self.scaling[adapter_name] = config.lora_alpha / config.r
        start_matrix(self.o_lora_A[adapter_name])
        if not config.init_weights:
            start_matrix(self.o_lora_B[adapter_name])
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def freeze_present(self, adapter_name: str, generator: torch.Generator) -> None:
        """Move the present task's matrices to those of earlier tasks, and start new ones: A at random, B at 0."""
        present_a, present_b = self.o_lora_A[adapter_name], self.o_lora_B[adapter_name]
        self.o_lora_past_A[adapter_name] = torch.cat([self.o_lora_past_A[adapter_name], present_a])
        self.o_lora_past_B[adapter_name] = torch.cat([self.o_lora_past_B[adapter_name], present_b], dim=1)
        start = torch.empty(present_a.shape)  # on the CPU, so that it is the same on every device
        present_a.copy_(start_matrix(start, generator))
        present_b.zero_()

    def fit_past(self, adapter_name: str, rank: int) -> None:
        """Make room for earlier tasks' matrices of ``rank`` rows in all, whose values are about to be loaded."""
        past_a, past_b = self.o_lora_past_A[adapter_name], self.o_lora_past_B[adapter_name]
        self.o_lora_past_A[adapter_name] = past_a.new_empty(rank, self.in_features)
        self.o_lora_past_B[adapter_name] = past_b.new_empty(self.out_features, rank)

    def penalty(self, adapter_name: str, config: OLoraConfig) -> Tensor:
        r"""What an adapter adds to the loss: :math:`\lambda_1 \sum_{i<t} \sum |A_i A_t^\top|` and, for
        :math:`\lambda_2 > 0`, :math:`\lambda_2 (\|A_t\|_F + \|B_t\|_F)`.
        """
        present_a, present_b = self.o_lora_A[adapter_name], self.o_lora_B[adapter_name]
        penalty = config.lambda_1 * linear(self.o_lora_past_A[adapter_name], present_a).abs().sum()
        if config.lambda_2 > 0:
            penalty = penalty + config.lambda_2 * (present_a.norm() + present_b.norm())
        return penalty

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the base layer and add all tasks' products."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name in self.active_adapters:
            if name in self.o_lora_A:
                present_a, present_b = self.o_lora_A[name], self.o_lora_B[name]
                past_a, past_b = self.o_lora_past_A[name], self.o_lora_past_B[name]
                x = self._cast_input_dtype(x, present_a.dtype)
                if len(past_a):
                    result = result + linear(linear(x, past_a), past_b) * self.scaling[name]
                result = result + linear(linear(x, present_a), present_b) * self.scaling[name]
        return result.to(dtype)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change of the weight that all tasks of an adapter make together, ``(out, in)``."""
        past = self.o_lora_past_B[adapter] @ self.o_lora_past_A[adapter]
        return self.scaling[adapter] * (past + self.o_lora_B[adapter] @ self.o_lora_A[adapter])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight, which is as they are, earlier and present tasks together.

        Args:
            safe_merge: Refuse weights that are not finite.
            adapter_names: Which; by default the active ones.

        Raises:
            ValueError: With ``safe_merge``, if the merged weight is not finite; the base weight stays as it is.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.o_lora_A:
                weight = self.get_base_weight()
                merged = weight + self.get_delta_weight(name).to(weight.dtype)
                if safe_merge and not merged.isfinite().all():
                    raise ValueError(f"the weights merged with adapter '{name}' are not finite: it is damaged")
                self.set_base_weight(merged)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take all merged adapters out of the base weight again, up to rounding."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            weight = self.get_base_weight()
            self.set_base_weight(weight - self.get_delta_weight(name).to(weight.dtype))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can turn this adapter into a LoRA: it can, the adapter is a change of the weight."""
        return True


def start_matrix(matrix: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill a matrix as LoRA starts its A: uniformly, as ``torch.nn.Linear`` starts its weight."""
    return nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)
