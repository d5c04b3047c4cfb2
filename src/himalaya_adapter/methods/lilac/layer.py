"""The linear module that LILAC adapts."""

from typing import Any

import torch
from torch import Tensor, nn

from himalaya_adapter.methods.linear_delta import LinearDeltaLayer

from .config import LilacConfig


class LilacLayer(LinearDeltaLayer):
    r"""Both factors of the update are combinations of the shared atoms: :math:`\Delta W = s\,(C_B D)^\top (C_A D)`.

    The layer owns the coefficients :math:`C_A, C_B` (``lilac_A`` and ``lilac_B``, each ``(rank, atoms)``). Narrower
    modules use the leading entries of the atoms :math:`D`. With :math:`C_B = 0` at the start the update is zero.
    Entries of the atoms have variance 1 / atoms, so that a step of the coefficients moves the entries of ``C D`` by
    about its own size, as a step of LoRA's factors does: learning rates that serve LoRA serve here.
    """

    adapter_layer_names = ("lilac_A", "lilac_B", "shared")

    def __init__(self, base_layer: nn.Linear, **quantization: Any) -> None:
        super().__init__(base_layer, **quantization)
        self.lilac_A = nn.ParameterDict()
        self.lilac_B = nn.ParameterDict()

    def add_adapter(self, name: str, config: LilacConfig) -> None:
        """Draw ``C_A`` so that ``C_A D x`` is about 1 for normalised inputs; ``C_B`` is 0 in a fresh adapter."""
        shape = config.lora_rank, config.dictionary_size
        self.lilac_A[name] = nn.Parameter(torch.randn(shape) / self.in_features**0.5)
        start = torch.zeros(shape) if config.init_weights else torch.randn(shape) / self.out_features**0.5
        self.lilac_B[name] = nn.Parameter(start)

    def factors(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """As in the class's formula.

        Raises:
            HimalayaError: The adapter was loaded from a release file and is being trained.
        """
        dictionary = self.shared[name].dictionary
        down = self.lilac_A[name] @ dictionary[:, : self.in_features]
        up = self.lilac_B[name] @ dictionary[:, : self.out_features]
        if self.training and down.requires_grad:
            self.shared[name].refuse_if_released()
        return [(down, up.T)]
