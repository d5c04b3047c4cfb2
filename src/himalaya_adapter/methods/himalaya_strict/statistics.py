"""What the current task has used so far: running statistics of constant size, the same on every rank."""

import torch
from torch import Tensor, distributed, nn

# Gradients of the last steps say what a learnt task relies on; those of the first steps say what it lacked.
DECAY = 0.9


class TaskStatistics(nn.Module):
    """Sums over the tokens of the current task, and the atoms' diagonal Fisher information.

    The passes of a step are summed aside and join the buffers at `fold`, together with those of the other ranks: a
    step that is skipped leaves no trace, and all ranks hold the same numbers.

    Args:
        atoms: Number of atoms ``k``.
        elastic: Number of elastic atoms ``k_e``.
        latent: Width ``p + 1`` of the latent ``[z; 1]``.
    """

    def __init__(self, atoms: int, elastic: int, latent: int) -> None:
        super().__init__()
        self.latent_moment = nn.Buffer(torch.zeros(latent, latent))
        self.atom_usage = nn.Buffer(torch.zeros(atoms))
        self.gate_total = nn.Buffer(torch.zeros(()))
        self.tokens_seen = nn.Buffer(torch.zeros(()))
        self.fisher = nn.Buffer(torch.zeros(elastic))
        self._pending: Tensor | None = None

    @torch.no_grad()
    def add(self, latents: Tensor, gates: Tensor, expected: Tensor, counted: Tensor | None) -> None:
        """Take note of one pass over tokens.

        Args:
            latents: ``[z; 1]``, ``(..., p + 1)``.
            gates: Zero-one gates, ``(..., k)``.
            expected: Expected number of open gates, ``(..., 1)``.
            counted: False at padding, a mask of the tokens in any shape; all count where it is not of these tokens.
        """
        seen = torch.cat([latents, gates, expected], dim=-1).flatten(0, -2)
        if counted is not None and counted.numel() == len(seen):
            seen = seen.masked_fill(~counted.flatten()[:, None], 0)
        sums = seen[:, : latents.shape[-1]].T @ seen  # plain sums are the last row, the constant's
        self._pending = sums if self._pending is None else self._pending + sums

    @torch.no_grad()
    def fold(self) -> None:
        """Add what the passes since the last fold have seen, on all ranks."""
        if self._pending is not None:
            sums = over_ranks(self._pending)
            moment, usage, total = sums.split([len(sums), len(self.atom_usage), 1], dim=1)
            self.latent_moment.add_(moment)
            self.atom_usage.add_(usage[-1])
            self.gate_total.add_(total[-1, 0])
            self.tokens_seen.add_(moment[-1, -1])
        self.discard()

    def discard(self) -> None:
        """Forget what the passes since the last fold have seen."""
        self._pending = None

    @torch.no_grad()
    def observe_gradient(self, gradient: Tensor) -> None:
        """Update the atoms' Fisher information with the gradient ``(k_e, d)`` of a step."""
        self.fisher.mul_(DECAY).add_(gradient.square().sum(1))

    @torch.no_grad()
    def clear(self) -> None:
        """Start a new task."""
        self.discard()
        for buffer in self.buffers():
            buffer.zero_()

    @property
    def usage(self) -> Tensor:
        """The share of tokens that used each atom, ``(k,)``."""
        return self.atom_usage / self.tokens_seen.clamp_min(1)


def over_ranks(tensor: Tensor, *, maximum: bool = False) -> Tensor:
    """The sum, or the maximum, of ``tensor`` over all processes, also in its place; itself in a single process."""
    if distributed.is_available() and distributed.is_initialized():
        tensor = tensor.contiguous()
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX if maximum else distributed.ReduceOp.SUM)
    return tensor
