"""Adaptation methods: importing this package makes each of them known to PEFT."""

from .registration import add_peft_type, register

add_peft_type("himalaya")
add_peft_type("loreft")
add_peft_type("o_lora")

from .himalaya import HimalayaConfig, HimalayaModel, save_release  # noqa: E402  (the config names its PeftType member)
from .loreft import LoReftConfig, LoReftModel  # noqa: E402
from .olora import OLoraConfig, OLoraModel  # noqa: E402

register("himalaya", HimalayaConfig, HimalayaModel)
register("loreft", LoReftConfig, LoReftModel)
register("o_lora", OLoraConfig, OLoraModel)

__all__ = [
    "HimalayaConfig",
    "HimalayaModel",
    "LoReftConfig",
    "LoReftModel",
    "OLoraConfig",
    "OLoraModel",
    "save_release",
]
