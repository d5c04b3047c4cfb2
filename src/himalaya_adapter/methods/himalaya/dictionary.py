"""The two tiers of atoms: a frozen core, and slots for what tasks have learnt (docs/method.md, "The dictionary")."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from himalaya_adapter.methods.quantization import dequantise_matrix, quantise_matrix

# Neighbours in a row that share a scale and a minimum.
GROUP = 32
# A shortened atom is rounded again, which may lengthen it by a little.
SHORTENINGS, MARGIN = 3, 1 + 2**-8
HALVES = ("scale", "minimum")


class RowFormat(NamedTuple):
    """How an atom is stored: its codes, then the scale and the minimum of each group in half precision.

    All of it is bytes: a cast of the model to another precision does not touch them.

    Args:
        width: Entries of an atom.
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
        parts = quantise_matrix(padded, self.bits, torch.ones_like(padded[0]), GROUP)
        halves = [parts[name].view(torch.uint8) for name in HALVES]
        return torch.cat([parts["codes"].view(len(atoms), -1), *halves], dim=1)

    def parts(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows ``(n, row_bytes)`` as `dequantise_matrix` takes them: packed codes, scale and minimum of each group."""
        codes, *halves = rows.split([self.row_bytes - 4 * self.groups, 2 * self.groups, 2 * self.groups], dim=1)
        parts = {name: half.contiguous().view(torch.float16) for name, half in zip(HALVES, halves, strict=True)}
        return parts | {"codes": codes.flatten(), "smoothing": torch.ones(self.groups * GROUP, device=rows.device)}

    def unpack(self, rows: Tensor) -> Tensor:
        """The way back: atoms ``(n, d)`` in float32."""
        return dequantise_matrix(self.parts(rows), self.bits, GROUP)[:, : self.width]


class Dictionary(nn.Module):
    """Core and elastic atoms, numbered together: first the core's, then the slots.

    Args:
        core_atoms: Number of core atoms; orthonormal where ``core_atoms <= width``, else unit rows.
        slots: Number of elastic atoms.
        row_format: How an atom is stored.
        seed: Seed of the core.
    """

    core: Tensor
    elastic: Tensor

    def __init__(self, core_atoms: int, slots: int, row_format: RowFormat, seed: int) -> None:
        super().__init__()
        self.row_format = row_format
        gaussian = torch.randn(core_atoms, row_format.width, generator=torch.Generator().manual_seed(seed))
        core = torch.linalg.qr(gaussian.double().T).Q.T.float() if core_atoms <= row_format.width else gaussian
        self.register_buffer("core", row_format.pack(normalize(core, dim=-1)))
        self.register_buffer("elastic", torch.zeros(slots, row_format.row_bytes, dtype=torch.uint8))

    def core_atoms(self) -> Tensor:
        """The core, ``(k_c, d)``."""
        return self.row_format.unpack(self.core)

    def atoms(self, numbers: Tensor) -> Tensor:
        """The atoms of these numbers ``(n,)``, ``(n, d)``."""
        return self.row_format.unpack(torch.cat([self.core, self.elastic])[numbers])

    @torch.no_grad()
    def write(self, slot: int, atom: Tensor | None) -> None:
        """Put an atom ``(d,)`` into a slot, rounded, or empty the slot."""
        self.elastic[slot] = 0 if atom is None else self.row_format.pack(atom[None])[0]
