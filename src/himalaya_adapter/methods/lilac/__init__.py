"""LILAC, a reconstruction: low-rank updates in the span of one dictionary that all layers share (docs/methods.md)."""

from .config import LilacConfig
from .layer import LilacLayer
from .model import LilacModel, SharedDictionary

__all__ = ["LilacConfig", "LilacLayer", "LilacModel", "SharedDictionary"]
