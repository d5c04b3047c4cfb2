"""Replay-free consolidation: what stands in for an atom that is overwritten (docs/method-strict.md, section 6)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from himalaya_adapter.methods.fisher import fisher_metric_product, fisher_projection

from .router import OWN_GATE, UNUSED_GATE

# Atoms that served in more than this share of an atom's use are on wherever it was.
PARTNER_SHARE = 0.5
# Codes further apart than this (relative to the largest) count as known; below lies rounding.
CODE_TOLERANCE = 1e-4


class StandIn(NamedTuple):
    """What takes an atom's place.

    Args:
        weights: Coefficients over all atoms, ``(k,)``; zero for those that are not on where the atom was.
        newcomer: The atom that takes the free place among the active ones.
        survives: Share of the atom's energy, in the Fisher metric, that the stand-in reproduces, in [0, 1].
    """

    weights: Tensor
    newcomer: int
    survives: float


class Consolidation(nn.Module):
    r"""Who has used which atom, in superposition: sums of task codes weighted by use, of constant size.

    With :math:`R = \sum_t c_t c_t^\top` and :math:`B_i = \sum_t s_{ti} c_t`, :math:`s_{ti}` being the share of task
    ``t``'s tokens that used atom ``i``, the functional :math:`R^{+}B_i` of a code returns :math:`s_{ti}` for each past
    task ``t``, exactly as long as the codes are linearly independent.

    Args:
        atoms: Number of atoms ``k``.
        code_width: Width ``e`` of a task's code.
    """

    def __init__(self, atoms: int, code_width: int) -> None:
        super().__init__()
        self.code_moment = nn.Buffer(torch.zeros(code_width, code_width))
        self.code_use = nn.Buffer(torch.zeros(atoms, code_width))

    @torch.no_grad()
    def observe(self, code: Tensor, usage: Tensor) -> None:
        """Take note of a finished task: its code ``(e,)`` and the share of its tokens that used each atom ``(k,)``."""
        self.code_moment.add_(torch.outer(code, code))
        self.code_use.add_(usage[:, None] * code)

    def users(self) -> Tensor:
        """Functionals ``(k, e)`` of a code: how much its task has used each atom."""
        inverse = torch.linalg.pinv(self.code_moment.double(), rtol=CODE_TOLERANCE, hermitian=True)
        return (self.code_use.double() @ inverse).to(self.code_use.dtype)

    def used_together(self) -> Tensor:
        """How much tasks used atoms together, ``(k, k)``: the sum over past tasks of the products of their shares."""
        return self.users() @ self.code_use.T

    def stand_in(
        self, atoms: Tensor, slot: int, used_together: Tensor, usable: Tensor, residuals: Tensor, steps: int
    ) -> StandIn:
        """What reproduces atom ``slot`` best, out of the atoms that were on with it and one that takes its place.

        Args:
            atoms: All atoms, ``(k, d)``.
            slot: The atom that is to be overwritten.
            used_together: What `used_together` returns.
            usable: Mask of the atoms that may stand in, ``(k,)``.
            residuals: Unit residuals of past steps, ``(m, d)``.
            steps: Most steps of the projection.
        """
        wide, metric = atoms.double(), residuals.double()
        together = used_together[slot]
        partners = usable & (together > PARTNER_SHARE * together[slot])
        partners[slot] = False
        candidates = usable & ~partners
        candidates[slot] = False
        # What each candidate adds to the partners: the part of it, and of the atom, that they cannot express.
        basis = wide[partners]
        weighted = fisher_metric_product(basis, metric)
        beyond = wide - (wide @ weighted.T) @ torch.linalg.pinv(weighted @ basis.T, hermitian=True) @ basis
        product = fisher_metric_product(beyond, metric)
        energy = (product * beyond).sum(1).clamp_min(torch.finfo(wide.dtype).tiny)
        gain = (product @ beyond[slot]).square() / energy
        newcomer = int(torch.where(candidates, gain, -1.0).argmax())
        chosen = partners.clone()
        chosen[newcomer] = True
        weights = torch.zeros_like(wide[:, 0])
        weights[chosen], survives = fisher_projection(wide[slot], wide[chosen], metric, steps)
        return StandIn(weights.to(atoms.dtype), newcomer, survives)

    @torch.no_grad()
    def replace(self, slot: int, stand_in: StandIn, head: Tensor) -> None:
        """Rewrite the router's head so that for past tasks the stand-in serves where atom ``slot`` did.

        Coefficients of the stand-in take over those of the atom; the newcomer's gate opens for the tasks that used the
        atom, and from now on that use counts as the newcomer's; the atom itself is closed to all past tasks, so that
        what overwrites it cannot reach them.

        Args:
            slot: The atom that is to be overwritten.
            stand_in: What takes its place.
            head: ``(2k + 1, p + 1, e)``.
        """
        atoms, use = len(stand_in.weights), self.code_use[slot]
        every = torch.zeros_like(head[0, 0])
        every[0] = len(every) ** 0.5  # 1 for every code: their first entry is always positive
        head[atoms : 2 * atoms] += stand_in.weights[:, None, None] * head[atoms + slot]
        times_used = every @ use
        if times_used > 0:
            gate = head[stand_in.newcomer, -1]
            mean = gate @ use / times_used
            # With more tasks than codes the mean is no mean any more.
            gate += (OWN_GATE - mean.clamp(UNUSED_GATE, OWN_GATE)) * self.users()[slot]
        head[[slot, atoms + slot]] = 0
        head[slot, -1] = UNUSED_GATE * every
        self.code_use[stand_in.newcomer] += use
        use.zero_()
