"""LILAC, a reconstruction: low-rank updates in the span of one dictionary that all layers share (docs/methods.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import PeftType
from torch import Tensor, nn

from .linear_delta import LinearDeltaLayer, LinearDeltaModel, widths
from .quantization import UNQUANTISED_BITS, ReleaseBits, column_smoothing, dequantise_matrix, quantise_matrix
from .release import check_finite, prefixed, split_by_prefix
from .shared_state import SharedState, SharedStateModel
from .targets import TargetsConfig

DICTIONARY = "dictionary"
COEFFICIENTS = ("lilac_A", "lilac_B")


@dataclass
class LilacConfig(TargetsConfig):
    """
    Configuration of a [`LilacModel`]. Beside the fields of [`TargetsConfig`]:

    Args:
        lora_rank (`int`):
            Rank of each module's update. Costs `2 * lora_rank * dictionary_size` parameters per module. Start from 4.
        dictionary_size (`int`):
            Atoms of the dictionary that all layers share; each is as wide as the widest target. More let the layers
            differ more, and cost most of the storage. Start from 64.
        quantisation_bits (`int`): Bits of a number in a release file: 2 to 8, or 16 for half precision.
        released (`bool`): Whether the file is a release: packed, for inference only. Set by `save_release`.
    """

    lora_rank: int = 4
    dictionary_size: int = 64
    quantisation_bits: ReleaseBits = 8
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.LILAC


class SharedDictionary(SharedState):
    """The atoms that all layers share, ``(atoms, width)``.

    Args:
        atoms: How many.
        width: That of the widest target.
    """

    def __init__(self, atoms: int, width: int) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(torch.randn(atoms, width) / atoms**0.5)


class LilacLayer(LinearDeltaLayer):
    r"""Both factors of the update are combinations of the shared atoms: :math:`\Delta W = s\,(C_B D)^\top (C_A D)`.

    The layer owns the coefficients :math:`C_A, C_B` (``lilac_A`` and ``lilac_B``, each ``(rank, atoms)``). Narrower
    modules use the leading entries of the atoms :math:`D`. With :math:`C_B = 0` at the start the update is zero.
    Entries of the atoms have variance 1 / atoms, so that a step of the coefficients moves the entries of ``C D`` by
    about its own size, as a step of LoRA's factors does: learning rates that serve LoRA serve here.
    """

    adapter_layer_names = (*COEFFICIENTS, "shared")
    lilac_A: nn.ParameterDict
    lilac_B: nn.ParameterDict

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


def pack(state: Mapping[str, Tensor], config: LilacConfig) -> dict[str, Tensor]:
    """What a release file holds of an adapter's state, the checksum apart.

    The coefficients of all layers stand one below the other in the order of their names: two matrices, and no names.

    Args:
        state: ``dictionary`` and each layer's coefficients; on the meta device shapes and types are computed only.
        config: The adapter's configuration; `quantisation_bits` 16 stores half precision.

    Raises:
        HimalayaError: A value is not finite.
    """
    check_finite(state)
    packed: dict[str, Tensor] = {}
    for kind in (DICTIONARY, *COEFFICIENTS):
        matrix = torch.cat([state[name] for name in _names(state, kind)]).detach().float()
        # Steps and minima are in half precision, to which small coefficients would be zero.
        peak = matrix.abs().amax()
        relative = matrix / torch.where(peak > 0, peak, 1.0)
        if config.quantisation_bits == UNQUANTISED_BITS:
            parts = {"values": relative.half()}
        else:
            smoothing = column_smoothing(relative)
            parts = quantise_matrix(relative / smoothing, config.quantisation_bits) | {"smoothing": smoothing}
        packed |= prefixed(f"{kind}.", {**parts, "peak": peak})
    return packed


def unpack(packed: Mapping[str, Tensor], config: LilacConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the whole state of the adapter.

    Args:
        packed: What `pack` returned.
        config: The adapter's configuration.
        state: The state of a new adapter, for the names of its layers.
    """
    found: dict[str, Tensor] = {}
    for kind in (DICTIONARY, *COEFFICIENTS):
        parts, _ = split_by_prefix(packed, f"{kind}.")
        if config.quantisation_bits == UNQUANTISED_BITS:
            relative = parts["values"].float()
        else:
            smoothing = parts["smoothing"].float()
            relative = dequantise_matrix(parts, config.quantisation_bits, len(smoothing)) * smoothing
        names = _names(state, kind)
        matrices = (relative * parts["peak"]).chunk(len(names))
        found |= {name: one.clone() for name, one in zip(names, matrices, strict=True)}
    return found


def _names(state: Mapping[str, Tensor], kind: str) -> list[str]:
    """The names of the tensors that are packed together."""
    return sorted(name for name in state if name.rpartition(".")[2] == kind)


class LilacModel(LinearDeltaModel, SharedStateModel):
    """Adapts linear modules and owns the adapters' dictionaries, one `SharedDictionary` per adapter name."""

    prefix = "lilac_"
    tuner_layer_cls = LilacLayer
    _pack, _unpack = staticmethod(pack), staticmethod(unpack)

    def _new_shared_state(
        self, config: LilacConfig, targets: Sequence[nn.Module], model: nn.Module
    ) -> SharedDictionary:
        return SharedDictionary(config.dictionary_size, max(widths(targets)))
