"""What a release file of HIMALAYA holds, and the way back (docs/method-strict.md, section 7)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from himalaya_adapter.methods.quantization import (
    BITS,
    UNQUANTISED_BITS,
    column_smoothing,
    dequantise_matrix,
    dequantise_rows,
    quantise_matrix,
    quantise_rows,
)
from himalaya_adapter.methods.release import check_finite, prefixed, split_by_prefix

from .config import HimalayaStrictConfig

# Tensors whose values must be finite.
VALUES = ("dictionary.", "router.")

# What inference needs. Everything else that an adapter stores is the state of its training, and left out.
ATOMS = ("dictionary.core", "dictionary.elastic")
# The smoothing of the columns is that of all atoms, so that core and elastic ones can be added up before it.
SMOOTHING = "dictionary.smoothing"
ROWS = ("router.head", "router.projection")
AS_THEY_ARE = (
    *("router.offset", "code", "in_use"),
    *("tree.thresholds", "tree.axes", "tree.spread", "tree.path"),
    *("memory.covariance", "memory.means", "memory.codes", "memory.tasks", "memory.closed"),
)


def pack(state: Mapping[str, Tensor], config: HimalayaStrictConfig) -> dict[str, Tensor]:
    """What a release file holds of an adapter's state, the checksum apart.

    Args:
        state: the adapter's, by the names in a file; on the meta device shapes and types are computed only.
        config: The adapter's configuration; `quantisation_bits` 16 stores atoms and router in half precision.

    Raises:
        HimalayaError: A value of the dictionary or the router is not finite.
    """
    check_finite(state, VALUES)
    # A scan has no tree.
    packed = {name: state[name].detach().clone() for name in AS_THEY_ARE if name in state}
    if config.quantisation_bits == UNQUANTISED_BITS:
        return packed | {name: state[name].half() for name in (*ATOMS, *ROWS)}
    packed[SMOOTHING] = column_smoothing(torch.cat([state[name] for name in ATOMS]))
    for name, bits in atom_bits(config).items():
        packed |= prefixed(f"{name}.", quantise_matrix(state[name].float() / packed[SMOOTHING], bits))
    for name in ROWS:
        packed |= prefixed(f"{name}.", quantise_rows(state[name]))
    return packed


def unpack(
    packed: Mapping[str, Tensor], config: HimalayaStrictConfig, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The way back: the part of an adapter's state that `pack` kept, with atoms of length 1.

    Args:
        packed: What `pack` returned.
        config: The adapter's configuration.
        state: Not used.
    """
    if config.quantisation_bits == UNQUANTISED_BITS:
        wide = {name: packed[name].float() for name in (*ATOMS, *ROWS)}
    else:
        wide = {name: dequantise_rows(split_by_prefix(packed, f"{name}.")[0]) for name in ROWS}
        smoothing = packed[SMOOTHING].float()
        for name, bits in atom_bits(config).items():
            parts, _ = split_by_prefix(packed, f"{name}.")
            wide[name] = dequantise_matrix(parts, bits, len(smoothing)) * smoothing
    wide |= {name: normalize(wide[name], dim=-1) for name in ATOMS}
    return wide | {name: packed[name] for name in AS_THEY_ARE if name in packed}


def atom_bits(config: HimalayaStrictConfig) -> dict[str, int]:
    """Bits of a core atom's entry, and of an elastic one's: twice as many, up to 8, since it holds what was learnt."""
    return dict(zip(ATOMS, (config.quantisation_bits, min(2 * config.quantisation_bits, BITS[-1])), strict=True))
