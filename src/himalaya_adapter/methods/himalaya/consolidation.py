"""Which slot is missed least, and what its atom lives on as (docs/method.md, "Eviction and consolidation")."""

import sys
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from himalaya_adapter.methods.events import Eviction
from himalaya_adapter.methods.fisher import Residuals, fisher_metric_product, fisher_projection

from .config import HimalayaConfig
from .dictionary import Dictionary
from .tasks import TERMS, TaskTable, rounded


class FisherMemory(Residuals):
    """Directions in which past losses were steep, and how much each slot matters: gradients only, no data.

    Args:
        config: The adapter's.
        width: Width of an atom.
    """

    def __init__(self, config: HimalayaConfig, width: int) -> None:
        super().__init__(width)
        self.steps = config.fisher_projection_steps
        # In shares of a task; what was learnt without this memory, as if all atoms of a task mattered alike.
        self.importance: Tensor = nn.Buffer(torch.full((config.elastic_atoms,), 1 / config.atoms_per_task))
        self.energy: Tensor = nn.Buffer(torch.zeros(config.atoms_per_task))  # of the open task's atoms

    @torch.no_grad()
    def observe(self, gradient: Tensor) -> None:
        """Take note of the loss's gradient by a task's atoms ``(k, d)``; its steepest row joins the ring buffer."""
        squared = (gradient / gradient.abs().max().clamp_min(torch.finfo(gradient.dtype).tiny)).square().sum(1)
        steepest = int(squared.argmax())
        if squared[steepest] > 0:
            self.remember(normalize(gradient[steepest], dim=0))
            self.energy += squared / squared.sum()

    def credit(self, slots: Mapping[int, int], taken: Sequence[int]) -> None:
        """Add to slots' importance the shares of the open task that its atoms have.

        Args:
            slots: Of its atoms, by their numbers.
            taken: Those of them that are its own.
        """
        self.importance[[*taken]] = 0
        for number, slot in slots.items():
            self.importance[slot] += self.energy[number] / self.energy.sum().clamp_min(1e-12)

    def forget(self, uses: Tensor, shared: Tensor) -> None:
        """Forget a task that is gone.

        Args:
            uses: How many atoms of other tasks use each slot, ``(slots,)``.
            shared: Which slots they shared with it, ``(slots,)``.
        """
        alike = 1 / len(self.energy)
        self.importance[uses == 0] = alike
        self.importance[shared] = (uses[shared] * alike).to(self.importance)
        # Which task a past gradient is from is not kept, so all of them go.
        for buffer in (self.residuals, self.seen, self.energy):
            buffer.zero_()

    def share(self, atom: Tensor, other: Tensor) -> float:
        """The share of an atom's energy that another one in its place has, below 0 if it is worse than nothing."""
        both = torch.stack([atom - other, atom]).double()
        error, energy = (both * fisher_metric_product(both, self.unit_residuals().double())).sum(1).tolist()
        return 1 - error / max(energy, sys.float_info.min)  # an atom may be all zero

    def stand_in(self, atom: Tensor, candidates: Tensor, most: int, steps: int) -> tuple[Tensor, Tensor]:
        """The combination of at most ``most`` of the candidates ``(n, d)`` that is closest to an atom ``(d,)``.

        Candidates are chosen by how much of the atom each has alone; their weights are found together, by at most
        ``steps`` conjugate-gradient steps in the Fisher metric.

        Returns:
            Which of the candidates, ``(m,)``, and how much of each, ``(m,)``.
        """
        atom, candidates, residuals = atom.double(), candidates.double(), self.unit_residuals().double()
        weighted = fisher_metric_product(candidates, residuals)
        energy = (weighted * candidates).sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        numbers = ((weighted @ atom).square() / energy).topk(min(most, len(candidates))).indices
        return numbers, fisher_projection(atom, candidates[numbers], residuals, steps)[0]

    def evict(self, uses: Tensor, keep: Sequence[int], tasks: TaskTable, dictionary: Dictionary) -> Eviction:
        """Free the slot that is missed least; what it held lives on as a combination of other atoms.

        Args:
            uses: How many atoms of tasks use each slot, ``(slots,)``.
            keep: Slots that stay.
            tasks: The table, in which the stand-ins are written.
            dictionary: The atoms.
        """
        missed, there = uses * self.importance, uses > 0
        missed[~there] = torch.inf
        missed[[*keep]] = torch.inf
        slot, first_slot = int(missed.argmin()), len(dictionary.core)
        there[slot] = False  # a stand-in cannot rest on what it stands in for, nor on what is not there
        usable = [*range(first_slot), *(there.nonzero().flatten() + first_slot).tolist()]
        survives = self.consolidate(first_slot + slot, usable, tasks, dictionary)
        names = tuple(sorted({tasks.name(row) for row, _ in survives}))
        return Eviction(slot, fmean(survives.values()) if survives else 1.0, tasks=names)

    def consolidate(
        self, number: int, usable: Sequence[int], tasks: TaskTable, dictionary: Dictionary
    ) -> dict[tuple[int, int], float]:
        """Let every task that uses an atom of the dictionary go on with the best stand-in for it.

        Args:
            number: The atom's, in the dictionary.
            usable: Numbers of the atoms that a stand-in may combine.
            tasks: The table, in which the stand-ins are written.
            dictionary: The atoms.

        Returns:
            Row and place of each task's atom that used it, and the share of that atom which survives.
        """
        candidates = dictionary.atoms(torch.tensor(usable, device=self.energy.device))
        users: list[list[int]] = (tasks.used() & (tasks.numbers == number)).any(-1).nonzero().tolist()
        survives = {}
        for row, atom in users:
            held = tasks.atoms(row, dictionary)[atom]
            chosen, weights = self.stand_in(held, candidates, TERMS, self.steps)
            weights = rounded(weights).to(held)
            share = self.share(held, weights @ candidates[chosen])
            if share <= 0:  # rounded, it may be worse than nothing
                chosen, weights = chosen[:0], weights[:0]
            tasks.set_atom(row, atom, [usable[one] for one in chosen.tolist()], weights)
            survives[row, atom] = max(0.0, share)
        return survives
