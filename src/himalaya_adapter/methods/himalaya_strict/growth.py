"""Budgeted elastic growth: directions that the loss asks for and no atom offers (docs/method-strict.md, section 5)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from himalaya_adapter.methods.fisher import Residuals


class Growth(Residuals):
    """The last residuals of the steps, and how close to an atom they were.

    Args:
        width: Width ``d`` of a residual.
        window: Steps over which the similarity is averaged.
        threshold: Mean similarity below which an atom is promoted.
    """

    def __init__(self, width: int, window: int, threshold: float) -> None:
        super().__init__(width)
        self.threshold = threshold
        self.similarities = nn.Buffer(torch.zeros(window))
        self.observed = nn.Buffer(torch.zeros((), dtype=torch.long))  # steps since the window's start

    @torch.no_grad()
    def observe(self, residual: Tensor, similarity: Tensor) -> None:
        """Keep the unit residual ``(d,)`` of a step and its cosine with the closest atom."""
        self.remember(residual / residual.abs().max())
        self.similarities[self.observed % len(self.similarities)] = similarity
        self.observed.add_(1)

    @property
    def mean_similarity(self) -> float | None:
        """Mean similarity over the trailing window; nothing before the window is full."""
        return self.similarities.mean().item() if self.observed >= len(self.similarities) else None

    @property
    def due(self) -> bool:
        """Whether the residuals have kept away from the atoms for a whole window."""
        similarity = self.mean_similarity
        return similarity is not None and similarity < self.threshold

    def restart(self) -> None:
        """Begin a new window, as after a promotion; the residuals stay."""
        self.observed.zero_()


def principal_direction(rows: Tensor) -> Tensor:
    """Top right singular vector ``(d,)`` of rows ``(n, d)``, through their Gram matrix, pointing along their mean."""
    wide = rows.double()
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    direction = normalize(vectors[:, -1] @ wide, dim=0)
    sign = torch.where(direction @ wide.mean(0) < 0, -1.0, 1.0)
    return (direction * sign).to(rows.dtype)
