"""LILAC as a PEFT tuner."""

from collections.abc import Sequence

import torch
from torch import nn

from himalaya_adapter.methods.linear_delta import LinearDeltaModel, widths
from himalaya_adapter.methods.shared_state import SharedState, SharedStateModel

from .config import LilacConfig
from .layer import LilacLayer
from .release import pack, unpack


class SharedDictionary(SharedState):
    """The atoms that all layers share, ``(atoms, width)``.

    Args:
        atoms: How many.
        width: That of the widest target.
    """

    def __init__(self, atoms: int, width: int) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(torch.randn(atoms, width) / atoms**0.5)


class LilacModel(LinearDeltaModel, SharedStateModel):
    """Adapts linear modules and owns the adapters' dictionaries, one `SharedDictionary` per adapter name."""

    prefix = "lilac_"
    tuner_layer_cls = LilacLayer
    _pack, _unpack = staticmethod(pack), staticmethod(unpack)

    def _new_shared_state(
        self, config: LilacConfig, targets: Sequence[nn.Module], model: nn.Module
    ) -> SharedDictionary:
        return SharedDictionary(config.dictionary_size, max(widths(targets)))
