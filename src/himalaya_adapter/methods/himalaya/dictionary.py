"""The atoms in two tiers, core and elastic slots (docs/method.md, "The dictionary")."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from himalaya_adapter.methods.packed_rows import RowFormat


class Dictionary(nn.Module):
    """Core and elastic atoms, numbered together: first the core's, then the slots.

    Args:
        core_atoms: Number of core atoms; orthonormal where ``core_atoms <= width``, else unit rows.
        slots: Number of elastic atoms.
        row_format: How an atom is stored.
        seed: Seed of the core.
    """

    def __init__(self, core_atoms: int, slots: int, row_format: RowFormat, seed: int) -> None:
        super().__init__()
        self.row_format = row_format
        gaussian = torch.randn(core_atoms, row_format.width, generator=torch.Generator().manual_seed(seed))
        core = torch.linalg.qr(gaussian.double().T).Q.T.float() if core_atoms <= row_format.width else gaussian
        self.core: Tensor = nn.Buffer(row_format.pack(normalize(core, dim=-1)))
        self.elastic: Tensor = nn.Buffer(torch.zeros(slots, row_format.row_bytes, dtype=torch.uint8))

    def core_atoms(self) -> Tensor:
        """The core, ``(k_c, d)``."""
        return self.row_format.unpack(self.core)

    def atoms(self, numbers: Tensor) -> Tensor:
        """The atoms of these numbers ``(n,)``, ``(n, d)``."""
        slots = numbers - len(self.core)
        core, elastic = self.core[numbers.clamp_max(len(self.core) - 1)], self.elastic[slots.clamp_min(0)]
        return self.row_format.unpack(torch.where((slots < 0)[:, None], core, elastic))
