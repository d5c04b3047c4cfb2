"""COLTAS, a reconstruction: each task moves some components of one low-rank adapter (docs/methods.md)."""

from .config import ColtasConfig
from .layer import ColtasLayer
from .mask import mask_dictionary, task_components
from .model import ColtasModel, TaskMask

__all__ = ["ColtasConfig", "ColtasLayer", "ColtasModel", "TaskMask", "mask_dictionary", "task_components"]
