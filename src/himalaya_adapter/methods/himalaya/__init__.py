"""HIMALAYA: hierarchical memory-allocating layer-free adapter (docs/method.md)."""

from .config import HimalayaConfig
from .layer import HimalayaLayer
from .model import HimalayaModel
from .shared import SharedAdapter

__all__ = ["HimalayaConfig", "HimalayaLayer", "HimalayaModel", "SharedAdapter"]
