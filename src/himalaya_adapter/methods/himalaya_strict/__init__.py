"""The method of the original experiment plan: a trained router per token, a protected head (docs/method-strict.md)."""

from .adapter import StrictAdapter
from .config import HimalayaStrictConfig
from .model import HimalayaStrictLayer, HimalayaStrictModel

__all__ = ["HimalayaStrictConfig", "HimalayaStrictLayer", "HimalayaStrictModel", "StrictAdapter"]
