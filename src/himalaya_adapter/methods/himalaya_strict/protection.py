"""What keeps earlier tasks in the router's head: a projector of its steps (docs/method-strict.md, section 6).

The projector is one onto the directions in which the head may still move.
"""

import math

import torch
from torch import Tensor

# Share of a task's feature energy that the head's later steps must leave alone.
PROTECTED_ENERGY = 0.99
# A feature of a new task of which less than this share is free cannot be reset without a large change elsewhere.
SMALLEST_FREE_SHARE = 0.05


def shrink_projector(projector: Tensor, moment: Tensor, energy: float) -> Tensor:
    r"""Take the directions that a task has used out of the projector :math:`\Pi`.

    The fewest principal directions of :math:`\Pi M \Pi` are removed after which at most ``1 - energy`` of the task's
    feature energy :math:`\mathrm{tr} M` lies in the range of :math:`\Pi`. A head that only moves inside that range
    changes its outputs on the task's features by no more than what that remainder carries.

    Args:
        projector: Orthogonal projector :math:`\Pi` onto the directions still free, ``(F, F)``.
        moment: Second moment ``M`` of the task's features, ``(F, F)``, symmetric positive semi-definite.
        energy: Share of the energy to protect, in (0, 1).

    Returns:
        The new projector, ``(F, F)``, in the input's precision (the computation is in 64 bits).
    """
    wide = projector.double()
    values, vectors = torch.linalg.eigh(wide @ moment.double() @ wide)
    values = values.clamp_min(0).flip(0)
    vectors = vectors.flip(1)
    remaining = values.sum() - values.cumsum(0)
    allowed = (1 - energy) * moment.double().trace()
    used = int((torch.cat([values.sum()[None], remaining]) > allowed).sum())
    directions = vectors[:, :used]
    return (wide - directions @ directions.T).to(projector.dtype)


def lift(projector: Tensor, code: Tensor) -> Tensor:
    r"""From a change of a task's own head to the smallest one of the shared head that makes it, off what is protected.

    With :math:`A = I \otimes c` the task's own head is :math:`H A`; a change of it by ``S`` is lifted to
    :math:`S (A^\top \Pi A)^{+} A^\top \Pi`, whose rows lie in the range of :math:`\Pi`. So a task learns at the same
    speed however many were learnt before, as long as a share of each of its directions is free.

    Args:
        projector: :math:`\Pi`, ``(F, F)``, ``F = (p + 1) e``.
        code: The task's code :math:`c`, ``(e,)``.

    Returns:
        The matrix ``(p + 1, F)`` to multiply ``S`` by, in 64 bits.
    """
    latent = len(projector) // len(code)
    basis = torch.kron(torch.eye(latent, dtype=torch.float64, device=code.device), code.double()[:, None])
    free = projector.double() @ basis
    return torch.linalg.pinv(basis.T @ free, atol=SMALLEST_FREE_SHARE, rtol=0.0, hermitian=True) @ free.T


def move_head(head: Tensor, change: Tensor, projector: Tensor, code: Tensor) -> Tensor:
    r"""Change a task's own head by ``S`` through the smallest change of the shared head that does it (`lift`).

    Args:
        head: ``(2k + 1, p + 1, e)``.
        change: :math:`S`, ``(2k + 1, p + 1)``.
        projector: :math:`\Pi`, ``(F, F)``.
        code: The task's code, ``(e,)``.

    Returns:
        The new head, of the same shape and precision.
    """
    return (head + (change.double() @ lift(projector, code)).view_as(head)).to(head.dtype)


def reset_head(head: Tensor, target: Tensor, projector: Tensor, code: Tensor) -> Tensor:
    r"""Give a task the own head ``target`` ``(2k + 1, p + 1)`` without moving what earlier tasks rely on.

    Codes of different tasks overlap a little, so an unseen task would inherit a random mixture of what others learnt.
    """
    return move_head(head, target.double() - head.double() @ code.double(), projector, code)


def upper_triangle(projector: Tensor) -> Tensor:
    """What a projector is stored as, being symmetric: its upper triangle ``(F (F + 1) / 2,)``, row by row."""
    rows, columns = torch.triu_indices(*projector.shape, device=projector.device)
    return projector[rows, columns]


def from_upper_triangle(triangle: Tensor) -> Tensor:
    """The symmetric matrix ``(F, F)`` of an `upper_triangle`."""
    size = math.isqrt(2 * len(triangle))
    above = torch.ones(size, size, dtype=torch.bool, device=triangle.device).triu()
    upper = triangle.new_zeros(size, size).masked_scatter(above, triangle)
    return upper + upper.triu(1).T
