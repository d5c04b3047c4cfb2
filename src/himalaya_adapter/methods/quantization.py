"""Few bits per number: dense codes, smoothed groups for atoms, bytes for rows (docs/method-strict.md, section 7)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

BITS = range(2, 9)
UNQUANTISED_BITS = 16  # half precision
Bits = Literal[2, 3, 4, 5, 6, 7, 8]
ReleaseBits = Literal[2, 3, 4, 5, 6, 7, 8, 16]
# Exponent of the per-column smoothing: 0 leaves columns as they are, 1 gives each the same largest entry.
SMOOTHING = 0.5
# Neighbours in a row that share a scale and a minimum. The answers of a trained adapter diverge from the unquantised
# ones by 0.028 nats with groups of 64, 0.019 with 32, 0.014 with 16.
GROUP = 16
INT8_LIMIT = 127


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack small numbers densely: every 8 codes fill ``bits`` bytes, the first code in the lowest bits.

    Args:
        codes: uint8, of any shape, all below ``2**bits``.
        bits: 2 to 8.

    Returns:
        uint8, ``ceil(n / 8) * bits`` long.
    """
    flat = codes.flatten().long()
    words = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    words = (words << bits * torch.arange(8, device=codes.device)).sum(1, keepdim=True)
    return (words >> 8 * torch.arange(bits, device=codes.device) & 0xFF).to(torch.uint8).flatten()


def unpack_codes(packed: Tensor, count: int, bits: int) -> Tensor:
    """The first ``count`` codes, uint8 ``(count,)``, out of what `pack_codes` returned."""
    words = packed.long().view(-1, bits) << 8 * torch.arange(bits, device=packed.device)
    words = words.sum(1, keepdim=True)
    codes = words >> bits * torch.arange(8, device=packed.device) & (1 << bits) - 1
    return codes.to(torch.uint8).flatten()[:count]


def column_smoothing(matrix: Tensor) -> Tensor:
    r"""The smoothing :math:`s_j = \max_i |D_{ij}|^{1/2}` of a matrix, float16 ``(d,)``; 1 for a column of zeros.

    What is quantised is the matrix divided by it: a column of large entries then does not widen the steps of its
    neighbours (as SmoothQuant, Xiao et al. 2023, arXiv:2211.10438).
    """
    smoothing = matrix.float().abs().amax(0).pow(SMOOTHING).half()
    return torch.where(smoothing > 0, smoothing, 1.0)


def quantise_matrix(matrix: Tensor, bits: int, group: int = GROUP) -> dict[str, Tensor]:
    r"""Quantisation by groups: :math:`D_{ij} \approx m_{ig} + q_{ij}\,\delta_{ig}`, ``g`` being the group of ``j``.

    Each group of neighbours in a row has its own minimum :math:`m` and step :math:`\delta`; codes are rounded to the
    nearest.

    Args:
        matrix: ``(k, d)``, entries of magnitude up to about 1.
        bits: Bits of a code, 2 to 8.
        group: How many neighbours share a scale and a minimum.

    Returns:
        uint8 ``codes``, packed; float16 ``scale`` and ``minimum`` ``(k, ceil(d / group))``.
    """
    groups = _grouped(matrix.float(), group)
    # The codes are computed from the rounded minimum and step, which are those that the reader has.
    minimum = groups.amin(-1).half()
    scale = ((groups.amax(-1) - minimum) / ((1 << bits) - 1)).half()
    steps = (groups - minimum[..., None]) / torch.where(scale > 0, scale, 1.0)[..., None].float()
    codes = steps.round().clamp(0, (1 << bits) - 1).to(torch.uint8)
    packed = pack_codes(codes.flatten(1)[:, : matrix.shape[1]], bits)
    return {"codes": packed, "scale": scale, "minimum": minimum}


def dequantise_matrix(parts: Mapping[str, Tensor], bits: int, width: int, group: int = GROUP) -> Tensor:
    """The matrix ``(k, width)`` in float32 that the parts from `quantise_matrix` with the same group stand for."""
    rows = len(parts["scale"])
    codes = unpack_codes(parts["codes"], rows * width, bits).view(rows, width)
    groups = parts["minimum"][..., None].float() + _grouped(codes.float(), group) * parts["scale"][..., None].float()
    return groups.flatten(1)[:, :width]


def quantise_rows(rows: Tensor) -> dict[str, Tensor]:
    """Symmetric int8 with one float32 ``scale`` per row of ``(n, ...)``; ``values`` has the shape of ``rows``."""
    flat = rows.float().flatten(1)
    scale = flat.abs().amax(1) / INT8_LIMIT
    values = (flat / torch.where(scale > 0, scale, 1.0)[:, None]).round().clamp(-INT8_LIMIT, INT8_LIMIT)
    return {"values": values.to(torch.int8).view_as(rows), "scale": scale}


def dequantise_rows(parts: Mapping[str, Tensor]) -> Tensor:
    """The rows in float32 that the parts returned by `quantise_rows` stand for."""
    values = parts["values"]
    return (values.float().flatten(1) * parts["scale"][:, None]).view_as(values)


def _grouped(matrix: Tensor, group: int) -> Tensor:
    """``(k, d)`` as ``(k, ceil(d / group), group)``; the last column is repeated, which changes no group's range."""
    padding = matrix[:, -1:].expand(-1, -matrix.shape[1] % group)
    return torch.cat([matrix, padding], dim=1).view(len(matrix), -1, group)
