"""O-LoRA: one low-rank adapter per task, each orthogonal to those before it (Wang et al. 2023, arXiv:2310.14152)."""

from .config import OLoraConfig
from .layer import OLoraLayer
from .model import OLoraModel

__all__ = ["OLoraConfig", "OLoraLayer", "OLoraModel"]
