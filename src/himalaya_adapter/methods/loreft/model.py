"""LoReFT as a PEFT tuner."""

from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from .layer import LoReftLayer

HAS_LAYERS = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2"),
    *("gpt_neox", "opt"),
)


class LoReftModel(BaseTuner):
    """Wraps decoder layers with `LoReftLayer`, so that the residual stream is edited after each of them."""

    prefix = "loreft_"
    tuner_layer_cls = LoReftLayer
    target_module_mapping = {  # noqa: RUF012  (PEFT declares it so)
        **dict.fromkeys(HAS_LAYERS, r"(.*\.)?layers\.\d+"),
        "gpt2": r"(.*\.)?h\.\d+",
    }

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> Any:
        # PEFT looks for a layer's number in front of a target's name; here it is the name.
        found = BaseTuner._check_target_module_exists(peft_config, key)
        wanted = peft_config.layers_to_transform
        if not found or wanted is None or not isinstance(peft_config.target_modules, str):
            return found
        number = key.rpartition(".")[-1]
        return number.isdecimal() and int(number) in ([wanted] if isinstance(wanted, int) else wanted)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, LoReftLayer) else LoReftLayer(target)
        layer.update_layer(adapter_name, _width(layer.get_base_layer(), self.model), peft_config)
        if layer is not target:
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own version copies `weight` from the wrapped module, which a decoder layer does not have.
        setattr(parent, child_name, new_module)


def _width(module: nn.Module, model: Any) -> int:
    """Width of what ``module`` returns: a linear module's own, else that of the model's hidden states."""
    width = getattr(module, "out_features", None)
    if width is None and hasattr(model, "config"):
        width = getattr(model.config.get_text_config(), "hidden_size", None)
    if width is None:
        raise ValueError(f"the width of a {type(module).__name__} is not known: the model's config has no hidden_size")
    return width
