"""What a release file of LILAC holds, and the way back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from himalaya_adapter.methods.quantization import UNQUANTISED_BITS, dequantise_matrix, quantise_matrix
from himalaya_adapter.methods.release import check_finite, prefixed, split_by_prefix

from .config import LilacConfig

DICTIONARY = "dictionary"
# The coefficients of all layers, one below the other in the order of their names: two matrices, and no names.
COEFFICIENTS = ("lilac_A", "lilac_B")


def pack(state: Mapping[str, Tensor], config: LilacConfig) -> dict[str, Tensor]:
    """What a release file holds of an adapter's state, the checksum apart.

    Args:
        state: ``dictionary`` and each layer's coefficients; on the meta device shapes and types are computed only.
        config: The adapter's configuration; `quantisation_bits` 16 stores half precision.

    Raises:
        HimalayaError: A value is not finite.
    """
    check_finite(state)
    matrices = {DICTIONARY: state[DICTIONARY]}
    matrices |= {kind: torch.cat([state[name] for name in _names(state, kind)]) for kind in COEFFICIENTS}
    packed: dict[str, Tensor] = {}
    for kind, matrix in matrices.items():
        # Steps and minima are in half precision, to which small coefficients would be zero.
        peak = matrix.detach().float().abs().amax()
        relative = matrix.detach().float() / torch.where(peak > 0, peak, 1.0)
        bits = config.quantisation_bits
        parts = {"values": relative.half()} if bits == UNQUANTISED_BITS else quantise_matrix(relative, bits)
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
        bits = config.quantisation_bits
        relative = parts["values"].float() if bits == UNQUANTISED_BITS else dequantise_matrix(parts, bits)
        names = [DICTIONARY] if kind == DICTIONARY else _names(state, kind)
        matrices = (relative * parts["peak"]).chunk(len(names))
        found |= {name: one.clone() for name, one in zip(names, matrices, strict=True)}
    return found


def _names(state: Mapping[str, Tensor], kind: str) -> list[str]:
    return sorted(name for name in state if name.endswith(f".{kind}"))
