"""The linear module that GloDiS-64 adapts."""

from typing import Any

import torch
from torch import Tensor, nn

from himalaya_adapter.methods.linear_delta import LinearDeltaLayer

from .config import GlodisConfig


class GlodisLayer(LinearDeltaLayer):
    r"""The update is a weighted sum of rank-one atoms: :math:`\Delta W = s\,B^\top \mathrm{diag}(c)\,A`.

    The layer owns the weights :math:`c`, ``glodis_c`` of shape ``(atoms,)``; all layers share ``A``, ``(atoms, in)``,
    and ``B``, ``(atoms, out)``, of which narrower modules use the leading columns. With :math:`c = 0` at the start
    the update is zero.
    """

    adapter_layer_names = ("glodis_c", "shared")

    def __init__(self, base_layer: nn.Linear, **quantization: Any) -> None:
        super().__init__(base_layer, **quantization)
        self.glodis_c = nn.ParameterDict()

    def add_adapter(self, name: str, config: GlodisConfig) -> None:
        """Weights of 0 in a fresh adapter."""
        shape = config.dictionary_size
        start = torch.zeros(shape) if config.init_weights else torch.randn(shape) / shape**0.5
        self.glodis_c[name] = nn.Parameter(start)

    def factors(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """As in the class's formula."""
        inward, outward = self.shared[name].A, self.shared[name].B
        up = outward[:, : self.out_features] * self.glodis_c[name][:, None]
        return [(inward[:, : self.in_features], up.T)]
