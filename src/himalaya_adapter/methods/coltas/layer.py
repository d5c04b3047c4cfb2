"""The linear module that COLTAS adapts."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from himalaya_adapter.methods.linear_delta import LinearDeltaLayer

from .config import ColtasConfig


class ColtasLayer(LinearDeltaLayer):
    r"""One LoRA of which each task uses some components: :math:`\Delta W_t = s\,B\,\mathrm{diag}(m_t)\,A`.

    The layer owns ``coltas_A``, ``(components, in)``, and ``coltas_B``, ``(out, components)``, as a LoRA does: with
    ``B = 0`` at the start the update is zero. Only the components of the current task are computed with, so all
    others have no gradient.
    """

    adapter_layer_names = ("coltas_A", "coltas_B", "shared")

    def __init__(self, base_layer: nn.Linear, **quantization: Any) -> None:
        super().__init__(base_layer, **quantization)
        self.coltas_A = nn.ParameterDict()
        self.coltas_B = nn.ParameterDict()

    def add_adapter(self, name: str, config: ColtasConfig) -> None:
        """Start as PEFT's LoRA does."""
        inward = torch.empty(config.components, self.in_features)
        nn.init.kaiming_uniform_(inward, a=math.sqrt(5))
        shape = self.out_features, config.components
        outward = torch.zeros(shape) if config.init_weights else torch.randn(shape) / self.out_features**0.5
        self.coltas_A[name], self.coltas_B[name] = nn.Parameter(inward), nn.Parameter(outward)

    def factors(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """As in the class's formula, without the components that the mask leaves out."""
        used = self.shared[name].used
        return [(self.coltas_A[name][used], self.coltas_B[name][:, used])]
