"""GloDiS-64, a reconstruction: per module, weights of 64 rank-one atoms that all share (docs/methods.md)."""

from .config import GlodisConfig
from .layer import GlodisLayer
from .model import GlodisModel, SharedAtoms

__all__ = ["GlodisConfig", "GlodisLayer", "GlodisModel", "SharedAtoms"]
