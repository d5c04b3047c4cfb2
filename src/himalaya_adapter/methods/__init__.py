"""Adaptation methods: importing this package makes each row of the registry known to PEFT."""

from himalaya_adapter.registry import METHODS

from .registration import register

for _method in METHODS.values():
    register(_method)

from .himalaya import HimalayaConfig, HimalayaModel  # noqa: E402
from .release import save_release  # noqa: E402

__all__ = ["HimalayaConfig", "HimalayaModel", "save_release"]
