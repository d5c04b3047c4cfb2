"""HIMALAYA to the letter of its source: a trained router per token, a protected head (docs/method-strict.md)."""

from .config import HimalayaStrictConfig
from .layer import HimalayaStrictLayer
from .model import HimalayaStrictModel
from .shared import SharedAdapter

__all__ = ["HimalayaStrictConfig", "HimalayaStrictLayer", "HimalayaStrictModel", "SharedAdapter"]
