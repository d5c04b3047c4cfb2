"""LoReFT as a PEFT tuner."""

from typing import Any

from peft import PeftConfig
from torch import nn

from himalaya_adapter.methods.targets import TargetsModel

from .layer import LoReftLayer

HAS_LAYERS = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2"),
    *("gpt_neox", "opt"),
)


class LoReftModel(TargetsModel):
    """Wraps decoder layers with `LoReftLayer`, so that the residual stream is edited after each of them."""

    prefix = "loreft_"
    tuner_layer_cls = LoReftLayer
    target_module_mapping = {  # noqa: RUF012  (PEFT declares it so)
        **dict.fromkeys(HAS_LAYERS, r"(.*\.)?layers\.\d+"),
        "gpt2": r"(.*\.)?h\.\d+",
    }

    def _add_adapter(self, layer: LoReftLayer, name: str, config: PeftConfig) -> None:
        layer.add_adapter(name, config, _width(layer.get_base_layer(), self.model))


def _width(module: nn.Module, model: Any) -> int:
    """Width of what ``module`` returns: a linear module's own, else that of the model's hidden states."""
    width = getattr(module, "out_features", None)
    if width is None and hasattr(model, "config"):
        width = getattr(model.config.get_text_config(), "hidden_size", None)
    if width is None:
        raise ValueError(f"the width of a {type(module).__name__} is not known: the model's config has no hidden_size")
    return width
