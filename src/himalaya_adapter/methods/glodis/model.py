"""GloDiS-64 as a PEFT tuner."""

from collections.abc import Sequence

import torch
from torch import nn

from himalaya_adapter.methods.linear_delta import LinearDeltaModel, widths
from himalaya_adapter.methods.shared_state import SharedState, SharedStateModel

from .config import GlodisConfig
from .layer import GlodisLayer


class SharedAtoms(SharedState):
    """The rank-one atoms that all layers share: ``A`` ``(atoms, in)`` and ``B`` ``(atoms, out)``.

    ``A x`` is about 1 for normalised inputs, and rows of ``B`` are long enough for small weights to act.

    Args:
        atoms: How many.
        in_features: Those of the widest input.
        out_features: Those of the widest output.
    """

    def __init__(self, atoms: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(atoms, in_features) / max(in_features, 1) ** 0.5)
        self.B = nn.Parameter(torch.randn(atoms, out_features) / atoms**0.5)


class GlodisModel(LinearDeltaModel, SharedStateModel):
    """Adapts linear modules and owns the adapters' atoms, one `SharedAtoms` per adapter name."""

    prefix = "glodis_"
    tuner_layer_cls = GlodisLayer

    def _new_shared_state(self, config: GlodisConfig, targets: Sequence[nn.Module], model: nn.Module) -> SharedAtoms:
        return SharedAtoms(config.dictionary_size, *widths(targets))
