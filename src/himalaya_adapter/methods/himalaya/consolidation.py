"""What an evicted atom lives on as: replay-free consolidation (docs/method.md, "Eviction and consolidation")."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from himalaya_adapter.methods.fisher import Residuals, fisher_metric_product, fisher_projection

from .dictionary import Dictionary
from .tasks import TERMS, TaskTable, rounded


class FisherMemory(Residuals):
    """Directions in which past losses were steep, and how much each slot matters: gradients only, no data.

    Args:
        slots: Number of elastic atoms.
        atoms: Atoms of a task ``k``.
        width: Width of an atom.
    """

    def __init__(self, slots: int, atoms: int, width: int) -> None:
        super().__init__(width)
        self.importance: Tensor = nn.Buffer(torch.zeros(slots))  # in shares of a task
        self.energy: Tensor = nn.Buffer(torch.zeros(atoms))  # of the open task's atoms

    @torch.no_grad()
    def observe(self, gradient: Tensor) -> None:
        """Take note of the loss's gradient by a task's atoms ``(k, d)``; its steepest row joins the ring buffer."""
        squared = gradient.square().sum(1)
        steepest = int(squared.argmax())
        if squared[steepest] > 0:
            self.remember(normalize(gradient[steepest], dim=0))
            self.energy += squared / squared.sum()

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

    def consolidate(
        self, number: int, usable: Sequence[int], tasks: TaskTable, dictionary: Dictionary, steps: int
    ) -> dict[tuple[int, int], float]:
        """Let every task that uses an atom of the dictionary go on with the best stand-in for it.

        Args:
            number: The atom's, in the dictionary.
            usable: Numbers of the atoms that a stand-in may combine.
            tasks: The table, in which the stand-ins are written.
            dictionary: The atoms.
            steps: Most conjugate-gradient steps.

        Returns:
            Row and place of each task's atom that used it, and the share of that atom which survives.
        """
        candidates = dictionary.atoms(torch.tensor(usable, device=self.energy.device))
        users: list[list[int]] = (tasks.used() & (tasks.numbers == number)).any(-1).nonzero().tolist()
        survives = {}
        for row, atom in users:
            held = tasks.atoms(row, dictionary)[atom]
            chosen, weights = self.stand_in(held, candidates, TERMS, steps)
            weights = rounded(weights).to(held)
            share = self.share(held, weights @ candidates[chosen])
            if share <= 0:  # rounded, it may be worse than nothing
                chosen, weights = chosen[:0], weights[:0]
            tasks.set_atom(row, atom, [usable[one] for one in chosen.tolist()], weights)
            survives[row, atom] = max(0.0, share)
        return survives
