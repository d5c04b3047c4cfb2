"""GloDiS-64, a reconstruction: per module, weights of 64 rank-one atoms that all share (docs/methods.md)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftType
from torch import Tensor, nn

from .linear_delta import LinearDeltaLayer, LinearDeltaModel, widths
from .shared_state import SharedState, SharedStateModel
from .targets import TargetsConfig


@dataclass
class GlodisConfig(TargetsConfig):
    """
    Configuration of a [`GlodisModel`]. Beside the fields of [`TargetsConfig`]:

    Args:
        dictionary_size (`int`):
            Rank-one atoms that all layers share. More learn more, and cost all of the storage and most of the time.
            64 gives the method its name.
    """

    dictionary_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.GLODIS


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


class GlodisLayer(LinearDeltaLayer):
    r"""The update is a weighted sum of rank-one atoms: :math:`\Delta W = s\,B^\top \mathrm{diag}(c)\,A`.

    The layer owns the weights :math:`c`, ``glodis_c`` of shape ``(atoms,)``; all layers share ``A``, ``(atoms, in)``,
    and ``B``, ``(atoms, out)``, of which narrower modules use the leading columns. With :math:`c = 0` at the start
    the update is zero.
    """

    adapter_layer_names = ("glodis_c", "shared")
    glodis_c: nn.ParameterDict

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


class GlodisModel(LinearDeltaModel, SharedStateModel):
    """Adapts linear modules and owns the adapters' atoms, one `SharedAtoms` per adapter name."""

    prefix = "glodis_"
    tuner_layer_cls = GlodisLayer

    def _new_shared_state(self, config: GlodisConfig, targets: Sequence[nn.Module], model: nn.Module) -> SharedAtoms:
        return SharedAtoms(config.dictionary_size, *widths(targets))
