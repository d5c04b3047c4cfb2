"""LoReFT: low-rank linear-subspace representation finetuning (Wu et al. 2024, arXiv:2404.03592)."""

from .config import LoReftConfig
from .layer import LoReftLayer
from .model import LoReftModel

__all__ = ["LoReftConfig", "LoReftLayer", "LoReftModel"]
