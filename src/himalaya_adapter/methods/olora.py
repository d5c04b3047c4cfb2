"""O-LoRA: one low-rank adapter per task, each orthogonal to those before it (Wang et al. 2023, arXiv:2310.14152)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftType
from peft.tuners._buffer_dict import BufferDict
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from torch.nn.functional import linear

from .events import Event
from .linear_delta import LinearDeltaLayer, LinearDeltaModel
from .targets import TargetsConfig

# The seeds of runs are neighbours, so those of a run's tasks lie far apart.
TASK_STRIDE = 1_000_003


@dataclass
class OLoraConfig(TargetsConfig):
    """
    Configuration of an [`OLoraModel`]: a low-rank adapter per task, all of them active. Its memory grows with the
    tasks. Not to be taken for PEFT's `LoraConfig(init_lora_weights="olora")`, a way to initialise one LoRA.
    Beside the fields of [`TargetsConfig`]:

    Args:
        r (`int`): Rank of each task's adapter. Start from 8.
        lora_alpha (`int`): Every adapter's product is scaled by `lora_alpha / r`. Start from 16.
        lambda_1 (`float`):
            Weight of the overlap with earlier tasks' adapters in the loss. Higher forgets less and leaves less freedom
            to learn. The authors use 0.5 for most tasks.
        lambda_2 (`float`): Weight of the norms of the present task's matrices in the loss. The authors use 0 or 0.1.
        target_modules (`list[str] | str`, *optional*):
            Linear modules. By default those of PEFT's LoRA, for decoder models usually the queries and values.
        seed (`int`): Seed of the adapters of the second and later tasks.

    Raises:
        ValueError: If a value is outside its range; the message names field, value and range.
    """

    r: int = 8
    lora_alpha: int = 16
    lambda_1: float = 0.5
    lambda_2: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.O_LORA
        for name in ("lambda_1", "lambda_2"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")


class OLoraLayer(LinearDeltaLayer):
    r"""The tasks up to the present one add up: :math:`\Delta W = s \sum_{i \le t} B_i A_i`, :math:`s = alpha / r`.

    The present task's :math:`A_t` ``(r, in)`` and :math:`B_t` ``(out, r)`` are parameters, ``o_lora_A`` and
    ``o_lora_B``. Those of earlier tasks are persistent buffers, stacked: ``o_lora_past_A`` is
    :math:`[A_1; \ldots; A_{t-1}]` and ``o_lora_past_B`` is :math:`[B_1 \ldots B_{t-1}]`, so that their sum is one
    product of rank :math:`(t - 1) r`.
    """

    adapter_layer_names = ("o_lora_A", "o_lora_B")
    other_param_names = ("o_lora_past_A", "o_lora_past_B", "scaling")

    o_lora_A: nn.ParameterDict
    o_lora_B: nn.ParameterDict

    def __init__(self, base_layer: nn.Linear, **quantization: Any) -> None:
        super().__init__(base_layer, **quantization)
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


class OLoraModel(LinearDeltaModel):
    """Adapts linear modules and leads them from task to task.

    The verbs of the stream (`start_task`, `penalty`) act on the active adapters and can be called on the `PeftModel`
    itself. All that evolves is a parameter or a persistent buffer, so a saved adapter is complete.
    """

    prefix = "o_lora_"
    tuner_layer_cls = OLoraLayer
    separates_tasks = True
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    # The stream's life cycle -----------------------------------------------------------------------------------

    def start_task(self, name: str, examples: Mapping[str, Any] | None = None) -> list[Event]:
        """Freeze what the last task has learnt and start a fresh adapter, which changes no output.

        Nothing is frozen before the first task: an adapter whose B are all 0 has learnt nothing.

        Args:
            name: The task's name; not used.
            examples: Not used.
        """
        for adapter in self.active_adapters:
            layers = self._layers(adapter)
            if any(layer.o_lora_B[adapter].any() for layer in layers):
                config = self.peft_config[adapter]
                learnt = 1 + len(layers[0].o_lora_past_A[adapter]) // config.r
                generator = torch.Generator().manual_seed(config.seed + TASK_STRIDE * learnt)
                for layer in layers:
                    layer.freeze_present(adapter, generator)
        return []

    def penalty(self) -> Tensor:
        r"""What is added to the loss of a step, a scalar: over all adapted modules,
        :math:`\lambda_1 \sum_{i<t} \sum |A_i A_t^\top| + \lambda_2 (\|A_t\|_F + \|B_t\|_F)`.
        """
        penalties = [
            layer.penalty(adapter, self.peft_config[adapter])
            for adapter in self.active_adapters
            for layer in self._layers(adapter)
        ]
        return torch.stack([penalty.to(penalties[0].device) for penalty in penalties]).sum()

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of the active adapters: the present task's matrices, and those of all tasks before it."""
        parts = {"past_A": 0, "past_B": 0, "A": 0, "B": 0}
        for adapter in self.active_adapters:
            for layer in self._layers(adapter):
                for part in parts:
                    parts[part] += getattr(layer, f"o_lora_{part}")[adapter].nbytes
        return parts

    # PEFT's plumbing -------------------------------------------------------------------------------------------

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        for name, module in model.named_modules():
            past = state.get(f"{name}.o_lora_past_A.{adapter_name}")
            if isinstance(module, OLoraLayer) and past is not None:
                module.fit_past(adapter_name, len(past))
        return state
