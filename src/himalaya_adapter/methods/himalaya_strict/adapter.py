"""One adapter from task to task: how each begins and ends, and what is evicted (docs/method-strict.md, section 6)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from himalaya_adapter.methods.events import Event, Eviction

from .config import HimalayaStrictConfig
from .consolidation import PARTNER_SHARE, Consolidation
from .dictionary import TINY
from .learning import Learning
from .protection import PROTECTED_ENERGY, shrink_projector, upper_triangle

PROJECTION_TOKENS = 4096
NEUTRAL_TASK = ""


class StrictAdapter(Learning):
    """Everything that a HIMALAYA_STRICT adapter stores; its size depends on neither the layers nor the tasks.

    All state that evolves is a parameter or a persistent buffer, its own or that of a part, so a checkpoint is
    complete. A slot is the place of an elastic atom.
    """

    def __init__(self, config: HimalayaStrictConfig, width: int, embedding_width: int | None = None) -> None:
        super().__init__(config, width, embedding_width)
        self.consolidation = Consolidation(len(self.in_use), config.code_width)
        # How much earlier tasks would miss each slot, in shares of a task.
        self.importance = nn.Buffer(torch.zeros(config.elastic_atoms))
        if self.router.head.is_meta:  # PEFT's low_cpu_mem_usage: all state is about to be loaded
            return
        self.start_task(NEUTRAL_TASK)  # plain PEFT use, without a stream, is one task without a name
        if not config.init_weights:
            nn.init.normal_(self.router.head, generator=torch.Generator().manual_seed(config.seed))

    # How a task begins -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def start_task(self, name: str) -> list[Eviction]:
        """Begin to learn task ``name``: its code, atoms of its own, a head that is a no-op, empty statistics.

        Its share of the slots is what all tasks so far would get alike, at most `atoms_per_task`, and one if there is
        one. Where all are taken, it gets the one that earlier tasks miss least; with ``evict=False`` none: it then
        learns with borrowed atoms.

        Returns:
            The evictions that made room for it.

        Raises:
            HimalayaError: The adapter was loaded from a release file.
        """
        self.refuse_if_released()
        self.set_task(name)
        self.anneal(0.0)
        config, core = self.config, self.config.core_atoms
        slots = self.in_use[core:]
        if self.tasks_learnt == 0:
            slots.fill_(False)
        evictions = [self.evict()] if config.evict and slots.all() else []
        share = min(config.atoms_per_task, config.elastic_atoms // (int(self.tasks_learnt) + 1))
        self.own.zero_()
        self.own[core + (~slots).nonzero().flatten()[: max(1, share)]] = True
        self.in_use.logical_or_(self.own)
        # Before anything is known about the task, what others rely on most is what it may borrow.
        self._fresh_start(name, pad(self.importance, (core, 0)))
        self.statistics.clear()
        self.growth.restart()
        self.memory.task_moment.zero_()
        self.rebuild_tree()
        return evictions

    def _fresh_start(self, name: str, worth: Tensor) -> None:
        """Give task ``name`` a fresh head for its own atoms; without any, for those of others that are worth most.

        Borrowed atoms stay as they are, and the task's head gives them coefficients of its own: that costs no storage,
        and earlier tasks do not notice.
        """
        most = self.config.expected_active_atoms
        serving: Tensor = self.own
        if not serving.any():
            best = worth.masked_fill(~self.in_use, -torch.inf).topk(min(most, len(worth))).indices
            serving = torch.zeros_like(self.in_use).index_fill_(0, best, True) & self.in_use
        self.reset_head(self.router.fresh_head(name, serving, self.in_use, most))

    @torch.no_grad()
    def fit_projection(self, inputs: Tensor) -> None:
        """Set the latent directions from normalised inputs ``(n, d)``, of which an even selection is looked at."""
        self.router.fit_projection(inputs[:: max(1, len(inputs) // PROJECTION_TOKENS)])
        self.rebuild_tree()

    @torch.no_grad()
    def promote(self, name: str, curvature: Tensor) -> None:
        """Point the atoms of task ``name`` at the leading eigenvectors of its first residuals ``(d, d)``.

        A task without atoms borrows those of others along which its loss falls fastest.
        """
        curvature, own = curvature.double(), self.own[self.config.core_atoms :]
        values, vectors = torch.linalg.eigh(curvature)
        # All of one sign: the atoms of a token share its gain.
        positive = values[-1] >= -values[0]
        count = int(own.sum())
        if count == 0:
            atoms = self.dictionary.atoms().double()
            worth = ((atoms @ curvature) * atoms).sum(1)
            self._fresh_start(name, worth if positive else -worth)
            return
        leading = vectors[:, -count:] if positive else vectors[:, :count]
        # An eigenvector's sign is open; fix it, so that every machine starts alike.
        signs = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
        self.dictionary.elastic[own] = (leading * signs).T.to(self.dictionary.elastic.dtype)
        self.rebuild_tree()

    @torch.no_grad()
    def evict(self) -> Eviction:
        """Free the slot that earlier tasks miss least; what it did for them is handed over to other atoms.

        What is missed is the importance (usage times Fisher information, in shares of the task) times the share that
        no stand-in reproduces. The atoms that were on with it become as much more important.
        """
        core, importance, slots = self.config.core_atoms, self.importance, self.in_use[self.config.core_atoms :]
        together = self.consolidation.used_together()
        candidates = slots.nonzero().flatten().tolist()
        stand_ins = {}
        if self.config.consolidate:
            residuals, atoms = self.growth.unit_residuals(), self.dictionary.atoms()
            steps = self.config.fisher_projection_steps
            stand_ins = {
                slot: self.consolidation.stand_in(atoms, core + slot, together, self.in_use, residuals, steps)
                for slot in candidates
            }
        missed = {
            slot: importance[slot].item() * (1 - stand_ins[slot].survives if stand_ins else 1) for slot in candidates
        }
        slot = min(candidates, key=lambda one: missed[one])
        event = Eviction(slot, importance=importance[slot].item())
        if stand_ins:
            _, newcomer, survives = stand_ins[slot]
            self.consolidation.replace(core + slot, stand_ins[slot], self.router.head)
            if newcomer >= core:
                importance[newcomer - core] += importance[slot] * survives
            event = replace(event, newcomer=newcomer, survives=survives)
        use = together[core + slot]
        slots[slot] = False
        partners = slots & (use[core:] > PARTNER_SHARE * use[core + slot])
        importance[slot] = 0
        importance[partners] += missed[slot] / max(1, int(partners.sum()))
        return event

    # How a task ends -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def end_task(self) -> list[Event]:
        """Close the task: later steps keep off its features and its atoms. Nothing is evicted for it now."""
        statistics, core = self.statistics, self.config.core_atoms
        statistics.fold()
        if self.config.protect:
            # The second moment of the features [z; 1] x c.
            moment = torch.kron(statistics.latent_moment, torch.outer(self.code, self.code))
            self.head_triangle.copy_(upper_triangle(shrink_projector(self.projector, moment, PROTECTED_ENERGY)))
        self.memory.learn(self.code)
        self.consolidation.observe(self.code, statistics.usage)
        # In shares of the task, whatever the size of its gradients; and a slot that it owned is never free again, even
        # if its last gradients vanished.
        usage = statistics.usage[core:]
        missed = (usage * statistics.fisher).clamp_min(TINY) * (self.own[core:] | (usage > 0))
        self.importance.add_(missed / missed.sum().clamp_min(TINY))
        self.tasks_learnt.add_(1)
        return []

    # What is reported ------------------------------------------------------------------------------------------

    def norm_certificate(self) -> dict[str, float]:
        """The largest norms seen in training."""
        return {"update_norm_max": self.update_norm_max.item(), "atom_norm_max": self.atom_norm_max.item()}

    def task_statistics(self) -> dict[str, Any]:
        """Expected and actual active atoms per token, usage of each atom (share of tokens), capacity left."""
        self.statistics.fold()
        tokens = self.statistics.tokens_seen.clamp_min(1).item()
        return {
            "expected_active_atoms": self.statistics.gate_total.item() / tokens,
            "active_atoms": self.statistics.atom_usage.sum().item() / tokens,
            "atom_usage": self.statistics.usage.tolist(),
            "head_directions_left": round(self.projector.double().trace().item()),  # a projector's rank
            "free_atoms": int((~self.in_use).sum()),
        }
