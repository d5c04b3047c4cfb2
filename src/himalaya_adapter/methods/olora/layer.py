"""A linear module with one low-rank adapter per task: those of earlier tasks, frozen, and the present one."""

import math
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn
from torch.nn.functional import linear

from himalaya_adapter.methods.linear_delta import LinearDeltaLayer

from .config import OLoraConfig


class OLoraLayer(LinearDeltaLayer):
    r"""The tasks up to the present one add up: :math:`\Delta W = s \sum_{i \le t} B_i A_i`, :math:`s = alpha / r`.

    The present task's :math:`A_t` ``(r, in)`` and :math:`B_t` ``(out, r)`` are parameters, ``o_lora_A`` and
    ``o_lora_B``. Those of earlier tasks are persistent buffers, stacked: ``o_lora_past_A`` is
    :math:`[A_1; \ldots; A_{t-1}]` and ``o_lora_past_B`` is :math:`[B_1 \ldots B_{t-1}]`, so that their sum is one
    product of rank :math:`(t - 1) r`.
    """

    adapter_layer_names = ("o_lora_A", "o_lora_B")
    other_param_names = ("o_lora_past_A", "o_lora_past_B", "scaling")

    def __init__(self, base_layer: nn.Linear, **quantization: Any) -> None:
        super().__init__(base_layer, **quantization)
        self.o_lora_A = nn.ParameterDict()
        self.o_lora_B = nn.ParameterDict()
        self.o_lora_past_A = BufferDict(persistent=True)
        self.o_lora_past_B = BufferDict(persistent=True)
        self.scaling: dict[str, float] = {}

    def add_adapter(self, name: str, config: OLoraConfig) -> None:
        """Start as PEFT's LoRA does, without earlier tasks."""
        self.o_lora_A[name] = nn.Parameter(torch.empty(config.r, self.in_features))
        self.o_lora_B[name] = nn.Parameter(torch.zeros(self.out_features, config.r))
        self.o_lora_past_A[name] = torch.empty(0, self.in_features)
        self.o_lora_past_B[name] = torch.empty(self.out_features, 0)
        self.scaling[name] = config.lora_alpha / config.r
        start_matrix(self.o_lora_A[name])
        if not config.init_weights:
            start_matrix(self.o_lora_B[name])

    def factors(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Those of all earlier tasks in one, if there are any, and the present task's."""
        past_a, past_b = self.o_lora_past_A[name], self.o_lora_past_B[name]
        return [*([(past_a, past_b)] if len(past_a) else []), (self.o_lora_A[name], self.o_lora_B[name])]

    def scale(self, name: str) -> float:
        """``lora_alpha / r``."""
        return self.scaling[name]

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

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can turn this adapter into a LoRA: it can, the adapter is a change of the weight."""
        return True


def start_matrix(matrix: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill a matrix as LoRA starts its A: uniformly, as ``torch.nn.Linear`` starts its weight."""
    return nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)
