"""Adaptation methods: importing this package makes each of them known to PEFT."""

from .registration import add_peft_type, register

add_peft_type("himalaya")

from .himalaya import HimalayaConfig, HimalayaModel, save_release  # noqa: E402  (the config names its PeftType member)

register("himalaya", HimalayaConfig, HimalayaModel)

__all__ = ["HimalayaConfig", "HimalayaModel", "save_release"]
