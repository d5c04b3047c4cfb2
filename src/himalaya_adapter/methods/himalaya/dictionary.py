"""The two-tier dictionary of atoms that all layers share (docs/method.md, section 1)."""

import torch
from torch import Tensor, nn


class Dictionary(nn.Module):
    """Unit atoms of width ``d``: a frozen isotropic core and an elastic pool that is trained.

    Args:
        core_atoms: Number of core rows; orthonormal where ``core_atoms <= width``, else a unit-norm frame.
        elastic_atoms: Number of elastic rows. Their shape never changes.
        width: Width ``d`` of an atom.
        seed: Seed of the Gaussian from which both tiers start.
    """

    core: Tensor

    def __init__(self, core_atoms: int, elastic_atoms: int, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        gaussian = torch.randn(core_atoms + elastic_atoms, width, generator=generator)
        core = gaussian[:core_atoms]
        if core_atoms <= width:
            core = torch.linalg.qr(core.double().T).Q.T.float()
        self.register_buffer("core", unit_rows(core))
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


def rank_one_update(
    projections: Tensor, coefficients: Tensor, gain: Tensor, atoms_in: Tensor, atoms_out: Tensor
) -> Tensor:
    r"""Apply the self-normalising update :math:`\gamma\, r_m r_n^\top x` without forming :math:`r` (section 2).

    With :math:`r_n = D_n^\top u / \lVert D_n^\top u\rVert` and :math:`r_m` likewise, the result is
    :math:`\gamma\,(u \cdot D_n x) / \sqrt{u^\top G_n u \; u^\top G_m u}\; D_m^\top u`, :math:`G = D D^\top` being the
    Gram matrix. Both factors have norm 1 whatever ``u`` is, hence :math:`\lVert\Delta W\rVert = |\gamma|`.

    Args:
        projections: :math:`D_n x`, shape ``(..., k)``.
        coefficients: :math:`u`, shape ``(..., k)``; a token whose coefficients are all zero gets no update.
        gain: :math:`\gamma`, shape ``(..., 1)``.
        atoms_in: :math:`D_n`, shape ``(k, n)``, in the precision in which ``projections`` were computed.
        atoms_out: :math:`D_m`, shape ``(k, m)``.

    Returns:
        The update of the layer's output, ``(..., m)``, in the precision of ``atoms_out``.
    """
    norm = outer_norm(coefficients, atoms_in, atoms_out)
    scale = gain * (coefficients * projections).sum(-1, keepdim=True) / norm
    return (scale * coefficients).to(atoms_out.dtype) @ atoms_out


def outer_norm(coefficients: Tensor, atoms_in: Tensor, atoms_out: Tensor) -> Tensor:
    r"""Norm :math:`\sqrt{u^\top G_n u \; u^\top G_m u}` of :math:`(D_m^\top u)(D_n^\top u)^\top`: ``(..., 1)``.

    Args:
        coefficients: :math:`u`, shape ``(..., k)``.
        atoms_in: :math:`D_n`, shape ``(k, n)``.
        atoms_out: :math:`D_m`, shape ``(k, m)``.
    """
    squared_in = (coefficients @ gram(atoms_in) * coefficients).sum(-1, keepdim=True)
    squared_out = squared_in
    if atoms_out is not atoms_in:
        squared_out = (coefficients @ gram(atoms_out) * coefficients).sum(-1, keepdim=True)
    return (squared_in * squared_out).clamp_min(torch.finfo(coefficients.dtype).tiny).sqrt()


def gram(atoms: Tensor) -> Tensor:
    """Gram matrix ``(k, k)`` of atoms ``(k, d)``, accumulated in at least 32 bits."""
    wide = atoms.to(torch.promote_types(atoms.dtype, torch.float32))
    return wide @ wide.T
