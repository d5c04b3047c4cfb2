"""HIMALAYA: one adapter for a long stream of tasks, which learns each and forgets none."""

from .adapter import HimalayaAdapter
from .config import HimalayaConfig
from .layer import HimalayaLayer, StreamLayer
from .model import HimalayaModel
from .weights import HashedLinear

__all__ = ["HashedLinear", "HimalayaAdapter", "HimalayaConfig", "HimalayaLayer", "HimalayaModel", "StreamLayer"]
