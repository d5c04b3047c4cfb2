"""What a memory of prompts sees of the task that is being learnt."""

from abc import abstractmethod

import torch
from torch import Tensor, distributed, nn

# How far the ends of a prompt reach: the weight of a token falls by this factor with each step away from them.
DECAY = 0.6


class PromptMemory(nn.Module):
    """A memory of fixed size of what tasks' prompts look like. Kept are moments of features, no data.

    The features come from the frozen model, so they never drift.

    Args:
        features: Their number ``q``.
        enough: More prompts of a task than this need not be seen; without it more are always welcome.
    """

    def __init__(self, features: int, enough: int | None = None) -> None:
        super().__init__()
        self.enough = enough
        # Of the task being learnt; its last row and column are of a feature that is always 1.
        self.task_moment: Tensor = nn.Buffer(torch.zeros(features + 1, features + 1))

    @abstractmethod
    def features(self, states: Tensor, mask: Tensor) -> Tensor:
        """Features ``(b, q)`` of prompts.

        Args:
            states: What the frozen model has of the prompts, ``(b, s, d)``.
            mask: 1 at the prompt's tokens, 0 at padding and at the answer, ``(b, s)``.
        """

    @property
    def has_enough(self) -> bool:
        """Whether more prompts of the task being learnt would add little."""
        return self.enough is not None and bool(self.task_moment[-1, -1] >= self.enough)

    @torch.no_grad()
    def observe_prompts(self, states: Tensor, mask: Tensor) -> None:
        """`observe` prompts as `features` takes them; those without a token, or that are not finite, do not count."""
        features = self.features(states, mask)
        self.observe(features[features.isfinite().all(1) & mask.any(1)])

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Add prompts of the task being learnt, by their features ``(n, q)``."""
        features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        self.task_moment += features.T @ features

    def begin(self) -> None:
        """Begin to observe in each process: what a checkpoint holds of the task counts for the first one only."""
        if distributed.is_available() and distributed.is_initialized() and distributed.get_rank():
            self.task_moment.zero_()

    def gather(self) -> bool:
        """Sum what was observed of the task over all processes; whether there is anything."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.task_moment)
        return bool(self.task_moment.any())
