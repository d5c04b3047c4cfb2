"""Frozen language models to adapt: named ones, local folders and models of the hub."""

from .catalogue import BACKBONES
from .loading import Backbone, load_backbone

__all__ = ["BACKBONES", "Backbone", "load_backbone"]
