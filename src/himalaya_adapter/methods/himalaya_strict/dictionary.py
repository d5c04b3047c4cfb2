"""The two-tier dictionary of atoms that all layers share (docs/method-strict.md, section 1)."""

import torch
from torch import Tensor, nn

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
        self.core = nn.Buffer(unit_rows(core))
        self.elastic = nn.Parameter(unit_rows(gaussian[core_atoms:]))

    def atoms(self) -> Tensor:
        """All atoms, core first: ``(k, d)``."""
        return torch.cat([self.core, self.elastic])

    @torch.no_grad()
    def return_to_sphere(self, moved: Tensor) -> None:
        """Put the elastic atoms of the mask ``moved`` ``(k_e,)`` back to unit length, as after every step."""
        self.elastic.copy_(torch.where(moved[:, None], unit_rows(self.elastic), self.elastic))

    @torch.no_grad()
    def largest_norm(self) -> float:
        """The largest Euclidean norm of an atom."""
        return torch.linalg.vector_norm(self.atoms(), dim=1).max().item()


def unit_rows(rows: Tensor) -> Tensor:
    """Scale every row of ``(n, d)`` to Euclidean length 1 (a zero row stays zero)."""
    return torch.nn.functional.normalize(rows, dim=-1)


def unit_coefficients(coefficients: Tensor, gram: Tensor) -> Tensor:
    r"""Coefficients of the unit vector :math:`D^\top u / \lVert D^\top u\rVert`: :math:`u / \sqrt{u^\top G u}`.

    Args:
        coefficients: :math:`u`, shape ``(..., k)``; all zero stays zero.
        gram: :math:`G = D D^\top`, ``(k, k)``.
    """
    squared = (coefficients @ gram * coefficients).sum(-1, keepdim=True)
    return coefficients / squared.clamp_min(torch.finfo(coefficients.dtype).tiny).sqrt()


def rank_one_update(projections: Tensor, gain: Tensor, unit_in: Tensor, unit_out: Tensor, atoms_out: Tensor) -> Tensor:
    r"""Apply the self-normalising update :math:`\gamma\, r_m r_n^\top x` without forming :math:`r` (section 2).

    With :math:`r_n = D_n^\top w_n` and :math:`r_m = D_m^\top w_m` of norm 1 (`unit_coefficients`) the result is
    :math:`\gamma\,(w_n \cdot D_n x)\, D_m^\top w_m`, hence :math:`\lVert\Delta W\rVert = |\gamma|`.

    Args:
        projections: :math:`D_n x`, shape ``(..., k)``.
        gain: :math:`\gamma`, shape ``(..., 1)``.
        unit_in: :math:`w_n`, shape ``(..., k)``.
        unit_out: :math:`w_m`, shape ``(..., k)``.
        atoms_out: :math:`D_m`, shape ``(k, m)``.

    Returns:
        The update of the layer's output, ``(..., m)``, in the precision of ``atoms_out``.
    """
    scale = gain * (unit_in * projections).sum(-1, keepdim=True)
    return (scale * unit_out).to(atoms_out.dtype) @ atoms_out


def gram(atoms: Tensor) -> Tensor:
    """Gram matrix ``(k, k)`` of atoms ``(k, d)``, accumulated in at least 32 bits."""
    wide = atoms.to(torch.promote_types(atoms.dtype, torch.float32))
    return wide @ wide.T
