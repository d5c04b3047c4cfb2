"""HIMALAYA: continual learning of a long stream of tasks with one tiny adapter of constant size."""

from .methods import HimalayaConfig, HimalayaModel

__all__ = ["HimalayaConfig", "HimalayaModel"]
