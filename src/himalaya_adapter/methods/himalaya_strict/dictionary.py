"""The two-tier dictionary of atoms that all layers share (docs/method-strict.md, section 1)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

TINY = torch.finfo(torch.float32).tiny


class Dictionary(nn.Module):
    """Unit atoms of width ``d``: a frozen isotropic core and an elastic pool that is trained.

    Args:
        core_atoms: Number of core rows; orthonormal where ``core_atoms <= width``, else a unit-norm frame.
        elastic_atoms: Number of elastic rows. Their shape never changes.
        width: Width ``d`` of an atom.
        seed: Seed of the Gaussian from which both tiers start.
    """

    def __init__(self, core_atoms: int, elastic_atoms: int, width: int, seed: int) -> None:
        super().__init__()
        self.width = width
        generator = torch.Generator().manual_seed(seed)
        gaussian = torch.randn(core_atoms + elastic_atoms, width, generator=generator)
        core = gaussian[:core_atoms]
        if core_atoms <= width:
            core = torch.linalg.qr(core.double().T).Q.T.float()
        self.core = nn.Buffer(normalize(core, dim=-1))
        self.elastic = nn.Parameter(normalize(gaussian[core_atoms:], dim=-1))

    def atoms(self) -> Tensor:
        """All atoms, core first: ``(k, d)``."""
        return torch.cat([self.core, self.elastic])

    @torch.no_grad()
    def return_to_sphere(self, moved: Tensor) -> None:
        """Put the elastic atoms of the mask ``moved`` ``(k_e,)`` back to unit length, as after every step."""
        self.elastic.copy_(torch.where(moved[:, None], normalize(self.elastic, dim=-1), self.elastic))

    @torch.no_grad()
    def largest_norm(self) -> float:
        """The largest Euclidean norm of an atom."""
        return torch.linalg.vector_norm(self.atoms(), dim=1).max().item()
