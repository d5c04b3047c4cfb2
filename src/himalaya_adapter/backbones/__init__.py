"""Frozen language models: where they come from and how they are loaded. What needs torch is loaded at first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .catalogue import BACKBONES

if TYPE_CHECKING:
    from .loading import Backbone, load_backbone

__all__ = ["BACKBONES", "Backbone", "load_backbone"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.loading"), name)
