"""Adaptation methods: importing this package makes each of them known to PEFT."""

from .registration import add_peft_type, register

for _name in ("himalaya", "himalaya_strict", "lilac", "coltas", "glodis", "loreft", "o_lora"):
    add_peft_type(_name)

# Each config names its PeftType member.
from .coltas import ColtasConfig, ColtasModel  # noqa: E402
from .glodis import GlodisConfig, GlodisModel  # noqa: E402
from .himalaya import HimalayaConfig, HimalayaModel  # noqa: E402
from .himalaya_strict import HimalayaStrictConfig, HimalayaStrictModel  # noqa: E402
from .lilac import LilacConfig, LilacModel  # noqa: E402
from .loreft import LoReftConfig, LoReftModel  # noqa: E402
from .olora import OLoraConfig, OLoraModel  # noqa: E402
from .release import save_release  # noqa: E402

register("himalaya", HimalayaConfig, HimalayaModel)
register("himalaya_strict", HimalayaStrictConfig, HimalayaStrictModel)
register("lilac", LilacConfig, LilacModel)
register("coltas", ColtasConfig, ColtasModel)
register("glodis", GlodisConfig, GlodisModel)
register("loreft", LoReftConfig, LoReftModel)
register("o_lora", OLoraConfig, OLoraModel)

__all__ = [
    "ColtasConfig",
    "ColtasModel",
    "GlodisConfig",
    "GlodisModel",
    "HimalayaConfig",
    "HimalayaModel",
    "HimalayaStrictConfig",
    "HimalayaStrictModel",
    "LilacConfig",
    "LilacModel",
    "LoReftConfig",
    "LoReftModel",
    "OLoraConfig",
    "OLoraModel",
    "save_release",
]
