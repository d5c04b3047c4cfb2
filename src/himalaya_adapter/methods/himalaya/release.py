"""What a release file of HIMALAYA holds, and the way back (docs/method.md, section 7)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from himalaya_adapter.methods.quantization import (
    UNQUANTISED_BITS,
    dequantise_matrix,
    dequantise_rows,
    quantise_matrix,
    quantise_rows,
)
from himalaya_adapter.methods.release import check_finite, prefixed, split_by_prefix

from .config import HimalayaConfig
from .dictionary import unit_rows

# Tensors whose values must be finite.
VALUES = ("dictionary.", "router.")

# What inference needs. Everything else that an adapter stores is the state of its training, and left out.
ATOMS = ("dictionary.core", "dictionary.elastic")
# What rounding took from the elastic atoms, rounded once more: they carry what was learnt. Since format 2.
REST, REST_SINCE = "rest.", 2
ROWS = ("router.head", "router.projection")
AS_THEY_ARE = (
    *("router.offset", "code", "in_use"),
    *("tree.thresholds", "tree.axes", "tree.spread", "tree.path"),
    *("memory.covariance", "memory.means", "memory.codes", "memory.tasks", "memory.closed"),
)


def pack(state: Mapping[str, Tensor], config: HimalayaConfig) -> dict[str, Tensor]:
    """What a release file holds of an adapter's state, the checksum apart.

    Args:
        state: `SharedAdapter.state_dict()`; on the meta device shapes and types are computed only.
        config: The adapter's configuration; `quantisation_bits` 16 stores atoms and router in half precision.

    Raises:
        HimalayaError: A value of the dictionary or the router is not finite.
    """
    check_finite(state, VALUES)
    packed: dict[str, Tensor] = {}
    if config.quantisation_bits == UNQUANTISED_BITS:
        packed.update({name: state[name].half() for name in (*ATOMS, *ROWS)})
    else:
        atoms = torch.cat([state[name] for name in ATOMS])
        parts = quantise_matrix(atoms, config.quantisation_bits)
        packed.update(prefixed("dictionary.", parts))
        if config.format_version >= REST_SINCE:
            rest = (atoms - dequantise_matrix(parts, config.quantisation_bits))[config.core_atoms :]
            packed.update(prefixed(f"dictionary.{REST}", quantise_matrix(rest, config.quantisation_bits)))
        for name in ROWS:
            packed.update(prefixed(f"{name}.", quantise_rows(state[name])))
    # A scan has no tree.
    return packed | {name: state[name].detach().clone() for name in AS_THEY_ARE if name in state}


def unpack(packed: Mapping[str, Tensor], config: HimalayaConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the part of an adapter's state that `pack` kept, with atoms of length 1.

    Args:
        packed: What `pack` returned.
        config: The adapter's configuration.
        state: The state of a new adapter, for the precision of each tensor.
    """
    if config.quantisation_bits == UNQUANTISED_BITS:
        atoms = torch.cat([packed[name] for name in ATOMS]).float()
        wide = {name: packed[name].float() for name in ROWS}
    else:
        rest, parts = split_by_prefix(split_by_prefix(packed, "dictionary.")[0], REST)
        atoms = dequantise_matrix(parts, config.quantisation_bits)
        if rest:
            atoms[config.core_atoms :] += dequantise_matrix(rest, config.quantisation_bits)
        wide = {name: dequantise_rows(split_by_prefix(packed, f"{name}.")[0]) for name in ROWS}
    wide.update(zip(ATOMS, unit_rows(atoms).split([config.core_atoms, config.elastic_atoms]), strict=True))
    as_they_are = {name: tensor for name, tensor in packed.items() if name in state and name not in wide}
    return {name: tensor.to(state[name].dtype) for name, tensor in (wide | as_they_are).items()}
