"""A buffer of residuals, and its Fisher metric: what stands in best for an atom (docs/method-strict.md, section 6)."""

import sys

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .quantization import INT8_LIMIT

RESIDUALS = 128  # the source's ring buffer, 4 x 32


class Residuals(nn.Module):
    """The last directions in which the loss was steep, in 8 bits; no data.

    Args:
        width: Width ``d`` of a direction.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residuals: Tensor = nn.Buffer(torch.zeros(RESIDUALS, width, dtype=torch.int8))
        self.seen: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def remember(self, direction: Tensor) -> None:
        """Keep a direction ``(d,)``, whose entries are of magnitude up to 1, in the place of the oldest."""
        self.residuals[int(self.seen) % RESIDUALS] = (direction * INT8_LIMIT).round().to(torch.int8)
        self.seen += 1

    def unit_residuals(self) -> Tensor:
        """The directions as unit rows, ``(m, d)``, ``m <= 128``."""
        return normalize(self.residuals[: int(self.seen)].float(), dim=1)


def fisher_metric_product(rows: Tensor, residuals: Tensor) -> Tensor:
    r"""Rows ``(n, d)`` times the Fisher metric :math:`M = \tfrac1m R^\top R + \tfrac1d I`, for residuals ``(m, d)``.

    The residuals are unit gradients, so :math:`\tfrac1m R^\top R` is an empirical Fisher matrix of trace 1. The
    isotropic part of the same trace keeps the metric definite where no gradient was seen.
    """
    isotropic = rows / rows.shape[1]
    return isotropic + (rows @ residuals.T) @ residuals / max(1, len(residuals))


def fisher_projection(atom: Tensor, others: Tensor, residuals: Tensor, steps: int) -> tuple[Tensor, float]:
    r"""Coefficients ``w`` that minimise :math:`\lVert a - A^\top w\rVert_M`: conjugate gradients from zero.

    The error falls with every step, so the stand-in is never worse than nothing, wherever the iteration stops.

    Args:
        atom: :math:`a`, ``(d,)``.
        others: :math:`A`, ``(n, d)``.
        residuals: Unit residuals that define the metric ``M``, ``(m, d)``.
        steps: Most iterations.

    Returns:
        ``w`` ``(n,)`` and the share :math:`1 - \lVert a - A^\top w\rVert_M^2 / \lVert a\rVert_M^2` of the atom that it
        reproduces.
    """
    weighted = fisher_metric_product(others, residuals)
    normal = weighted @ others.T
    weights = torch.zeros_like(weighted[:, 0])
    gradient = weighted @ atom
    direction, squared = gradient, gradient @ gradient
    enough = torch.finfo(atom.dtype).eps ** 2 * squared
    for _ in range(steps):
        curvature = direction @ normal @ direction
        if squared <= enough or curvature <= 0:
            break
        weights = weights + squared / curvature * direction
        gradient = gradient - squared / curvature * (normal @ direction)
        previous, squared = squared, gradient @ gradient
        direction = gradient + squared / previous * direction
    error = atom - weights @ others
    energies = [(row @ fisher_metric_product(row[None], residuals)[0]).item() for row in (error, atom)]
    return weights, max(0.0, 1 - energies[0] / max(energies[1], sys.float_info.min))  # an atom may be all zero
