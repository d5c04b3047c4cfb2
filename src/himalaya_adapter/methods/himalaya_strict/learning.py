"""What happens inside a task: steps, what they must leave alone, and growth (docs/method-strict.md, sections 5, 6)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from himalaya_adapter.methods.events import Promotion
from himalaya_adapter.methods.fisher import fisher_projection
from himalaya_adapter.methods.kd_tree import FAR

from .answering import Answering
from .config import HimalayaStrictConfig
from .growth import Growth, principal_direction
from .protection import from_upper_triangle, move_head, reset_head, upper_triangle
from .router import OWN_GATE
from .statistics import over_ranks

# Of the head's gradient; a residual grows with the gain, the head's gradient does not.
SMALLEST_RESIDUAL = 1e-5
# A grown atom starts with little weight: it turns r towards the residual without replacing what was learnt.
GROWN_COEFFICIENT = 0.1


class Learning(Answering):
    """Adds what the steps of a task need: what they may move, and the directions that the loss asks for."""

    def __init__(self, config: HimalayaStrictConfig, width: int, embedding_width: int | None = None) -> None:
        super().__init__(config, width, embedding_width)
        self.growth = Growth(width, config.growth_window, config.similarity_threshold_tau)
        self.own = nn.Buffer(torch.zeros_like(self.in_use))  # the atoms of the task being learnt
        self.head_triangle = nn.Buffer(upper_triangle(torch.eye(self.router.head[0].numel())))
        self.tasks_learnt = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self.atom_norm_max = nn.Buffer(torch.zeros(()))
        self._before: tuple[Tensor, Tensor] | None = None  # the head and the elastic atoms before a step

    @property
    def projector(self) -> Tensor:
        """The projector onto the directions in which the router's head may still move, ``(F, F)``."""
        return from_upper_triangle(self.head_triangle)

    def reset_head(self, target: Tensor) -> None:
        """Give the current task the head ``(2k + 1, p + 1)``, off what earlier ones rely on."""
        self.router.head.copy_(reset_head(self.router.head, target, self.projector, self.code))

    @torch.no_grad()
    def before_step(self) -> bool:
        """Take note of the parameters, and of this step's gradients by the atoms and by r.

        Returns:
            Whether there is a finite gradient; without one the step is to be skipped.
        """
        head, elastic, probe = self.router.head, self.dictionary.elastic, self.probe
        gradients = [one.grad for one in (head, elastic) if one.grad is not None]
        self._before = None
        if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
            self.skip_step()
            return False
        self.statistics.fold()
        over_ranks(self.update_norm_max, maximum=True)
        if elastic.grad is not None:
            self.statistics.observe_gradient(elastic.grad)
        if probe is not None and probe.grad is not None:
            residual = -over_ranks(probe.grad)
            # Right after the head is reset the gain is rounding, and so is the direction of a residual.
            if residual.isfinite().all() and residual.norm() > SMALLEST_RESIDUAL * gradients[0].norm():
                residual = normalize(residual, dim=0)
                self.growth.observe(residual, self._similarity(residual))
        self.skip_step()
        self._before = head.clone(), elastic.clone()
        return True

    def skip_step(self) -> None:
        """Forget what the passes since the last step have seen."""
        self.statistics.discard()
        if self.probe is not None:
            self.probe.grad = None

    @torch.no_grad()
    def after_step(self) -> Promotion | None:
        """Take out of the optimiser's step what earlier tasks rely on, and put the atoms back on the sphere.

        Returns:
            The growth of the dictionary, if it is due.
        """
        if self._before is None:
            return None
        self.clear_pass()
        (old_head, old_atoms), self._before = self._before, None
        elastic = self.dictionary.elastic
        elastic.copy_(torch.lerp(old_atoms, elastic, self.config.atom_step))
        if self.config.protect:
            elastic.copy_(torch.where(self.own[self.config.core_atoms :, None], elastic, old_atoms))
            if self.tasks_learnt > 0:
                change = self.router.task_head(self.code) - old_head @ self.code
                self.router.head.copy_(move_head(old_head, change, self.projector, self.code))
        self.dictionary.return_to_sphere((elastic != old_atoms).any(1))
        self.atom_norm_max.fill_(max(self.atom_norm_max.item(), self.dictionary.largest_norm()))
        return self.grow() if self.config.grow and self.growth.due else None

    @torch.no_grad()
    def grow(self) -> Promotion | None:
        """Promote the residuals' main direction to an atom: in a free slot, or in the task's least useful one."""
        core, elastic, statistics = self.config.core_atoms, self.dictionary.elastic, self.statistics
        similarity, evicted, survives = self.growth.mean_similarity, None, None
        self.growth.restart()
        own = self.own[core:].nonzero().flatten()
        free = (~self.in_use[core:]).nonzero().flatten()
        target = self.router.task_head(self.code).clone()
        coefficients = target[len(self.in_use) :]  # a view of the coefficient rows, and the gain's
        residuals = self.growth.unit_residuals().to(elastic.dtype)
        if len(free) and len(own) < self.config.atoms_per_task:
            slot = int(free[0])
        elif len(own) > 1:
            importance = (statistics.usage[core:] * statistics.fisher)[own]
            slot = evicted = int(own[importance.argmin()])
            if self.config.consolidate:
                others = core + own[own != slot]
                weights, survives = fisher_projection(
                    elastic[slot], self.dictionary.atoms()[others], residuals, self.config.fisher_projection_steps
                )
                coefficients[others] += weights[:, None] * coefficients[core + slot]
        else:
            return None  # what is left belongs to other tasks
        atom = core + slot
        target[atom], coefficients[atom] = 0, 0
        target[atom, -1], coefficients[atom, -1] = OWN_GATE, GROWN_COEFFICIENT
        self.reset_head(target)
        elastic[slot] = principal_direction(residuals)
        self.in_use[atom] = self.own[atom] = True
        statistics.fisher[slot] = 0
        self.rebuild_tree()
        return Promotion(slot, similarity, evicted, survives)

    @torch.no_grad()
    def forget_moments(self, optimizer: torch.optim.Optimizer, slot: int) -> None:
        """Zero the optimiser's moments of an atom that was overwritten: its row, its routing, the rebuilt tree."""
        atom, atoms = self.config.core_atoms + slot, len(self.in_use)
        rows: list[tuple[Tensor, Any]] = [(self.dictionary.elastic, slot), (self.router.head, [atom, atoms + atom])]
        if self.tree is not None:
            rows.append((self.tree.thresholds, slice(None)))
        for parameter, index in rows:
            for moment in optimizer.state.get(parameter, {}).values():
                if torch.is_tensor(moment) and moment.shape == parameter.shape:
                    moment[index] = 0

    def _similarity(self, residual: Tensor) -> Tensor:
        """Cosine of a unit residual ``(d,)`` with the closest elastic atom or its opposite."""
        atoms, unused = self.dictionary.elastic, ~self.in_use[self.config.core_atoms :]
        cosines = (atoms @ residual).abs().masked_fill(unused, 0)
        if self.tree is None:
            return cosines.max()
        query, keys = self._keys(residual[None]), self._keys(atoms).masked_fill(unused[:, None], FAR)
        return cosines[self.tree.nearest(torch.cat([query, -query]), keys)].max()

    def _keys(self, vectors: Tensor) -> Tensor:
        """Keys ``(n, p)`` of unit vectors ``(n, d)`` in the tree: their latent coordinates at a token's length."""
        return vectors @ self.router.projection.T * self.dictionary.width**0.5

    def rebuild_tree(self) -> None:
        """Fit the tree to the atoms as they are now."""
        if self.tree is not None:
            self.tree.build(self._keys(self.dictionary.elastic))
