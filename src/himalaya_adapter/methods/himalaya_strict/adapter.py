"""One adapter from task to task: how each begins, learns and ends, and what is evicted (docs/method-strict.md)."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from himalaya_adapter.methods.events import Event, Eviction, Promotion
from himalaya_adapter.methods.fisher import fisher_projection
from himalaya_adapter.methods.kd_tree import FAR, KDTree
from himalaya_adapter.methods.shared_state import SharedState

from .config import HimalayaStrictConfig
from .consolidation import PARTNER_SHARE, Consolidation
from .dictionary import TINY, Dictionary
from .growth import Growth, principal_direction
from .prompt_memory import DiscriminantMemory
from .protection import PROTECTED_ENERGY, from_upper_triangle, move_head, reset_head, shrink_projector, upper_triangle
from .router import OWN_GATE, HyperRouter, latent_width, task_code
from .statistics import TaskStatistics, over_ranks
from .update import Update

PROJECTION_TOKENS = 4096
NEUTRAL_TASK = ""
# Of the head's gradient; a residual grows with the gain, the head's gradient does not.
SMALLEST_RESIDUAL = 1e-5
# A grown atom starts with little weight: it turns r towards the residual without replacing what was learnt.
GROWN_COEFFICIENT = 0.1


class StrictAdapter(SharedState):
    """Everything that a HIMALAYA_STRICT adapter stores; its size depends on neither the layers nor the tasks.

    All state that evolves is a parameter or a persistent buffer, its own or that of a part, so a checkpoint is
    complete. A slot is the place of an elastic atom.

    Args:
        config: The method's configuration.
        width: Width ``d`` of the atoms: that of the hidden states, or of the widest target.
        embedding_width: Width of the input embeddings, if it is another one.
    """

    beside_tensors = ("infers_task", "prompt_codes")

    def __init__(self, config: HimalayaStrictConfig, width: int, embedding_width: int | None = None) -> None:
        super().__init__()
        core, elastic, code = config.core_atoms, config.elastic_atoms, config.code_width
        atoms = core + elastic
        latent = latent_width(width, atoms, code, config.hidden_params)
        self.config = config
        self.dictionary = Dictionary(core, elastic, width, config.seed)
        self.router = HyperRouter(atoms, width, latent, code, config.seed)
        self.tree = KDTree(elastic, latent, config.fanout, config.leaf_size) if config.index != "scan" else None
        self.statistics = TaskStatistics(atoms, elastic, latent + 1)
        self.memory = DiscriminantMemory(width if embedding_width is None else embedding_width, code)
        self.growth = Growth(width, config.growth_window, config.similarity_threshold_tau)
        self.consolidation = Consolidation(atoms, code)
        self.update = Update(config, self.dictionary, self.router, self.tree, self.statistics)
        self.in_use = nn.Buffer(torch.arange(atoms) < core)  # which atoms hold something
        self.own = nn.Buffer(torch.zeros_like(self.in_use))  # the atoms of the task being learnt
        # How much earlier tasks would miss each slot, in shares of a task.
        self.importance = nn.Buffer(torch.zeros(elastic))
        self.code = nn.Buffer(torch.zeros(code))  # of the task being learnt, or answered
        self.tasks_learnt = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self.head_triangle = nn.Buffer(upper_triangle(torch.eye(self.router.head[0].numel())))
        self.update_norm_max = nn.Buffer(torch.zeros(()))
        self.atom_norm_max = nn.Buffer(torch.zeros(()))
        self.infers_task = False
        # The codes inferred from a batch's prompts, ``(batch, e)``, or that of all, ``(e,)``; none for a named task.
        self.prompt_codes: Tensor | None = None
        self._before: tuple[Tensor, Tensor] | None = None  # the head and the elastic atoms before a step
        if self.router.head.is_meta:  # PEFT's low_cpu_mem_usage: all state is about to be loaded
            return
        self.start_task(NEUTRAL_TASK)  # plain PEFT use, without a stream, is one task without a name
        if not config.init_weights:
            nn.init.normal_(self.router.head, generator=torch.Generator().manual_seed(config.seed))

    @property
    def projector(self) -> Tensor:
        """The projector onto the directions in which the router's head may still move, ``(F, F)``."""
        return from_upper_triangle(self.head_triangle)

    # Which task answers ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_task(self, name: str | None) -> None:
        """Route by the code of task ``name``, or by the one that each prompt's features say (``None``)."""
        self.infers_task, self.prompt_codes = name is None, None
        self.update.clear_pass()
        if name is not None:
            self.code.copy_(task_code(name, len(self.code)))

    def read_prompts(self, embeddings: Tensor, mask: Tensor) -> None:
        """Route each row, until the next prompts, as the task that its prompt looks like.

        Args:
            embeddings: Input embeddings of the prompts, ``(b, s, d)``.
            mask: 0 at padding, ``(b, s)``.
        """
        codes = self.memory.infer(self.memory.features(embeddings, mask))[0].to(self.code.dtype)
        self.prompt_codes = codes[0] if bool((codes == codes[0]).all()) else codes

    def infer_task(self, embeddings: Tensor, mask: Tensor, names: Sequence[str]) -> list[tuple[str | None, float]]:
        """The one of ``names`` that each prompt's code stands for, or ``None``, and a confidence in [0, 1]."""
        codes, confidences = self.memory.infer(self.memory.features(embeddings, mask))
        known = {tuple(task_code(name, codes.shape[1]).sign().tolist()): name for name in names}
        found = [known.get(tuple(code)) for code in codes.sign().tolist()]
        return list(zip(found, confidences.tolist(), strict=True))

    @property
    def prompt_memory(self) -> DiscriminantMemory:
        """What tells a prompt's task."""
        return self.memory

    def begin_pass(self, tokens: Tensor | None) -> None:
        """Called before each pass of the model, with a mask of its tokens; ``None`` if all count."""
        self.update.begin_pass(*self._routed, tokens)

    def forward(self, hidden_states: Tensor, output_width: int) -> Tensor:
        """The update for inputs ``(..., n)`` of a module with ``output_width`` outputs: ``(..., output_width)``.

        Raises:
            HimalayaError: The adapter was loaded from a release file, and it is trained.
        """
        if self.update.trains:
            self.refuse_if_released()
        device = hidden_states.device.type
        # The norms need the precision chosen here. A context for each layer and token takes longer than a product.
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            update, norm = self.update(hidden_states, output_width, *self._routed)
        if norm is not None:
            # `fmax` ignores what is not a number: such a pass is dropped before it changes anything.
            self.update_norm_max.copy_(torch.fmax(self.update_norm_max, norm.to(self.update_norm_max.dtype)))
        return update

    @property
    def _routed(self) -> tuple[Tensor, Tensor]:
        """By which code, or codes, and to which atoms."""
        return self.code if self.prompt_codes is None else self.prompt_codes, self.in_use

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, as for every module."""
        self.update.clear_pass()  # the probe is there in training only
        return super().train(mode)

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
        self.update.progress = 0.0
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
        self._rebuild_tree()
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
        self._reset_head(self.router.fresh_head(name, serving, self.in_use, most))

    @torch.no_grad()
    def promote(self, name: str, inputs: Tensor, curvature: Tensor) -> None:
        """Point the atoms of task ``name`` at the leading eigenvectors of its first residuals.

        A task without atoms borrows those of others along which its loss falls fastest. The very first task also sets
        the latent directions.

        Args:
            name: The task's name.
            inputs: Normalised inputs ``(n, d)``, of which an even selection is looked at.
            curvature: The first residuals, ``(d, d)``, as `first_residuals` returns them.
        """
        if self.tasks_learnt == 0:
            self.router.fit_projection(inputs[:: max(1, len(inputs) // PROJECTION_TOKENS)])
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
        self._rebuild_tree()

    @torch.no_grad()
    def evict(self) -> Eviction:
        """Free the slot that earlier tasks miss least; what it did for them is handed over to other atoms.

        What is missed is the importance (usage times Fisher information, in shares of the task) times the share that
        no stand-in reproduces. The atoms that were on with it become as much more important.
        """
        core, importance, slots = self.config.core_atoms, self.importance, self.in_use[self.config.core_atoms :]
        together = self.consolidation.used_together()
        missed = importance.masked_fill(~slots, torch.inf).tolist()
        stand_ins = {}
        if self.config.consolidate:
            residuals, atoms = self.growth.unit_residuals(), self.dictionary.atoms()
            steps = self.config.fisher_projection_steps
            for slot in slots.nonzero().flatten().tolist():
                stand_ins[slot] = self.consolidation.stand_in(
                    atoms, core + slot, together, self.in_use, residuals, steps
                )
                missed[slot] *= 1 - stand_ins[slot].survives
        slot = missed.index(min(missed))
        newcomer = survives = None
        if stand_ins:
            _, newcomer, survives = stand_ins[slot]
            self.consolidation.replace(core + slot, stand_ins[slot], self.router.head)
            if newcomer >= core:
                importance[newcomer - core] += importance[slot] * survives
        event = Eviction(slot, importance=importance[slot].item(), newcomer=newcomer, survives=survives)
        use = together[core + slot]
        slots[slot] = False
        partners = slots & (use[core:] > PARTNER_SHARE * use[core + slot])
        importance[slot] = 0
        importance[partners] += missed[slot] / max(1, int(partners.sum()))
        return event

    # What its steps may move, and how it grows -----------------------------------------------------------------

    @torch.no_grad()
    def before_step(self) -> bool:
        """Take note of the parameters, and of this step's gradients by the atoms and by r.

        Returns:
            Whether there is a finite gradient; without one the step is to be skipped.
        """
        head, elastic, probe = self.router.head, self.dictionary.elastic, self.update.probe
        gradients = [one.grad for one in (head, elastic) if one.grad is not None]
        finite = bool(gradients) and all(gradient.isfinite().all() for gradient in gradients)
        self._before = (head.clone(), elastic.clone()) if finite else None
        if finite:
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
        return finite

    def skip_step(self) -> None:
        """Forget what the passes since the last step have seen."""
        self.statistics.discard()
        if self.update.probe is not None:
            self.update.probe.grad = None

    @torch.no_grad()
    def after_step(self) -> Promotion | None:
        """Take out of the optimiser's step what earlier tasks rely on, and put the atoms back on the sphere.

        Returns:
            The growth of the dictionary, if it is due.
        """
        if self._before is None:
            return None
        self.update.clear_pass()
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
        self._reset_head(target)
        elastic[slot] = principal_direction(residuals)
        self.in_use[atom] = self.own[atom] = True
        statistics.fisher[slot] = 0
        self._rebuild_tree()
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

    def _reset_head(self, target: Tensor) -> None:
        """Give the current task the head ``(2k + 1, p + 1)``, off what earlier ones rely on."""
        self.router.head.copy_(reset_head(self.router.head, target, self.projector, self.code))

    def _similarity(self, residual: Tensor) -> Tensor:
        """Cosine of a unit residual ``(d,)`` with the closest elastic atom or its opposite."""
        atoms, unused = self.dictionary.elastic, ~self.in_use[self.config.core_atoms :]
        cosines = (atoms @ residual).abs().masked_fill(unused, 0)
        if self.tree is None:
            return cosines.max()
        query, keys = self.router.keys(residual[None]), self.router.keys(atoms).masked_fill(unused[:, None], FAR)
        return cosines[self.tree.nearest(torch.cat([query, -query]), keys)].max()

    def _rebuild_tree(self) -> None:
        """Fit the tree to the atoms as they are now."""
        if self.tree is not None:
            self.tree.build(self.router.keys(self.dictionary.elastic))

    # How it ends -----------------------------------------------------------------------------------------------

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
