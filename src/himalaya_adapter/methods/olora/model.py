"""O-LoRA as a PEFT tuner."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.linear_delta import LinearDeltaModel

from .layer import OLoraLayer

PAST_A = ".o_lora_past_A"
# The seeds of runs are neighbours, so those of a run's tasks lie far apart.
TASK_STRIDE = 1_000_003


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
            past = state.get(f"{name}{PAST_A}.{adapter_name}")
            if isinstance(module, OLoraLayer) and past is not None:
                module.fit_past(adapter_name, len(past))
        return state
