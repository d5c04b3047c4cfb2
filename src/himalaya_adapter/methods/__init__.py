"""Adaptation methods: importing this package makes each of them known to PEFT."""

from .registration import add_peft_type, register

for _name in ("himalaya", "lilac", "coltas", "glodis"):
    add_peft_type(_name)

# Each config names its PeftType member.
from .coltas import ColtasConfig, ColtasModel  # noqa: E402
from .glodis import GlodisConfig, GlodisModel  # noqa: E402
from .himalaya import HimalayaConfig, HimalayaModel  # noqa: E402
from .lilac import LilacConfig, LilacModel  # noqa: E402
from .release import save_release  # noqa: E402

register("himalaya", HimalayaConfig, HimalayaModel)
register("lilac", LilacConfig, LilacModel)
register("coltas", ColtasConfig, ColtasModel)
register("glodis", GlodisConfig, GlodisModel)

__all__ = [
    "ColtasConfig",
    "ColtasModel",
    "GlodisConfig",
    "GlodisModel",
    "HimalayaConfig",
    "HimalayaModel",
    "LilacConfig",
    "LilacModel",
    "save_release",
]
