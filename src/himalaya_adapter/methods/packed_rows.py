"""Rows of numbers in few bits, each by itself, as bytes that no cast of a model touches."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .quantization import dequantise_matrix, quantise_matrix

# Neighbours in a row that share a scale and a minimum.
GROUP = 32
# A shortened atom is rounded again, which may lengthen it by a little.
SHORTENINGS, MARGIN = 3, 1 + 2**-8
HALVES = ("scale", "minimum")


class RowFormat(NamedTuple):
    """How a row is stored: its codes, then the scale and the minimum of each group in half precision.

    All of it is bytes: a cast of the model to another precision does not touch them.

    Args:
        width: Entries of a row.
        bits: Bits of an entry.
    """

    width: int
    bits: int

    @property
    def groups(self) -> int:
        """Groups of a row; the last one is filled up with zeros."""
        return -(-self.width // GROUP)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.groups * (GROUP // 8 * self.bits + 4)

    def pack(self, atoms: Tensor) -> Tensor:
        """Atoms ``(n, d)`` of norm at most 1 as bytes ``(n, row_bytes)``; no row depends on another.

        Rounding may lengthen an atom, by more the fewer the bits: such a one is shortened first.
        """
        for _ in range(SHORTENINGS):
            rounded = torch.linalg.vector_norm(self.unpack(self._pack(atoms)), dim=1, keepdim=True)
            atoms = torch.where(rounded > 1, atoms / (rounded * MARGIN), atoms)
        return self._pack(atoms)

    def _pack(self, atoms: Tensor) -> Tensor:
        padded = pad(atoms, (0, self.groups * GROUP - self.width))
        parts = quantise_matrix(padded, self.bits, GROUP)
        halves = [parts[name].view(torch.uint8) for name in HALVES]
        return torch.cat([parts["codes"].view(len(atoms), -1), *halves], dim=1)

    def parts(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows ``(n, row_bytes)`` as `dequantise_matrix` takes them: packed codes, scale and minimum of each group."""
        codes, *halves = rows.split([self.row_bytes - 4 * self.groups, 2 * self.groups, 2 * self.groups], dim=1)
        parts = {name: half.contiguous().view(torch.float16) for name, half in zip(HALVES, halves, strict=True)}
        return parts | {"codes": codes.flatten()}

    def unpack(self, rows: Tensor) -> Tensor:
        """The way back: atoms ``(n, d)`` in float32."""
        return dequantise_matrix(self.parts(rows), self.bits, self.groups * GROUP, GROUP)[:, : self.width]
