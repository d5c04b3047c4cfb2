"""Which atoms hold something, which the task may move, and how much earlier tasks would miss each (section 6)."""

import torch
from torch import Tensor, nn

from .dictionary import TINY


class Slots(nn.Module):
    """What is known of each atom beside its direction; a slot is the place of an elastic atom.

    Args:
        core: Number of core atoms, which are always in use.
        elastic: Number of slots.
    """

    in_use: Tensor
    own: Tensor
    importance: Tensor

    def __init__(self, core: int, elastic: int) -> None:
        super().__init__()
        self.core = core
        self.register_buffer("in_use", torch.arange(core + elastic) < core)
        self.register_buffer("own", torch.zeros(core + elastic, dtype=torch.bool))  # of the task being learnt
        self.register_buffer("importance", torch.zeros(elastic))  # in shares of a task

    @property
    def elastic_in_use(self) -> Tensor:
        """Mask of the slots that hold something, ``(k_e,)``; a view."""
        return self.in_use[self.core :]

    @property
    def own_elastic(self) -> Tensor:
        """Mask of the slots that the task may move, ``(k_e,)``; a view."""
        return self.own[self.core :]

    def allocate(self, most: int, alike: int) -> None:
        """Give the task free slots: as many as all tasks get alike, at most ``most``, and one if there is one."""
        free = (~self.elastic_in_use).nonzero().flatten()
        self.own.zero_()
        self.own[self.core + free[: max(1, min(most, alike))]] = True
        self.in_use |= self.own

    def borrow(self, worth: Tensor, most: int) -> Tensor:
        """Atoms of others for a task that has none of its own: those worth most to it.

        They stay as they are, and the task's head gives them coefficients of its own: that costs no storage, and
        earlier tasks do not notice.

        Args:
            worth: What each atom is worth to the task, ``(k,)``.
            most: How many may be active.

        Returns:
            Their mask, ``(k,)``.
        """
        best = worth.masked_fill(~self.in_use, -torch.inf).topk(min(most, len(worth)))
        return torch.zeros_like(self.in_use).index_fill_(0, best.indices, True) & self.in_use

    def take(self, slot: int) -> None:
        """Give the task a slot."""
        self.in_use[self.core + slot] = self.own[self.core + slot] = True

    def free(self, slot: int, missed: float, partners: Tensor) -> None:
        """Free a slot; the others of the mask ``partners`` ``(k_e,)`` gain as much importance as it is missed."""
        partners = partners & self.elastic_in_use
        partners[slot] = False
        self.importance[slot] = 0
        self.importance[partners] += missed / max(1, int(partners.sum()))
        self.in_use[self.core + slot] = False

    def count(self, usage: Tensor, fisher: Tensor) -> None:
        """Add what a task misses without each slot, in shares of the task, whatever the size of its gradients.

        A slot that the task owned is never free again, even if its last gradients vanished.

        Args:
            usage: The share of its tokens that used each slot, ``(k_e,)``.
            fisher: Fisher information of each slot's atom, ``(k_e,)``.
        """
        missed = (usage * fisher).clamp_min(TINY) * (self.own_elastic | (usage > 0))
        self.importance += missed / missed.sum().clamp_min(TINY)
