"""One adapter through its stream: what it learns, protects, remembers and reports."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from himalaya_adapter.methods.events import Event, Eviction, Promotion
from himalaya_adapter.methods.fisher import fisher_projection
from himalaya_adapter.methods.kd_tree import FAR, KDTree
from himalaya_adapter.methods.prompt_memory import PromptMemory
from himalaya_adapter.methods.shared_state import SharedState

from .config import HimalayaStrictConfig
from .consolidation import PARTNER_SHARE, Consolidation
from .dictionary import Dictionary
from .growth import Growth, principal_direction
from .protection import Protection, free_directions
from .router import OWN_GATE, HyperRouter, latent_width
from .slots import Slots
from .statistics import TaskStatistics, share_maximum, sum_over_ranks
from .update import Update

PROJECTION_TOKENS = 4096
# Of the head's gradient; a residual grows with the gain, the head's gradient does not.
SMALLEST_RESIDUAL = 1e-5
NEUTRAL_TASK = ""
# A grown atom starts with little weight: it turns r towards the residual without replacing what was learnt.
GROWN_COEFFICIENT = 0.1
# Files, and so all state dictionaries, are older than the parts that own these.
OWNERS = {
    **{"in_use": "slots", "own": "slots", "importance": "slots"},
    **{"head_triangle": "protection", "update_norm_max": "update", "code": "router"},
}


class StrictAdapter(SharedState):
    """Everything that a HIMALAYA_STRICT adapter stores; its size depends on neither the layers nor the tasks.

    All state that evolves is a parameter or a persistent buffer of one of its parts, so a checkpoint is complete.

    Args:
        config: The method's configuration.
        width: Width ``d`` of the atoms: that of the hidden states, or of the widest target.
        embedding_width: Width of the input embeddings, if it is another one.
    """

    tasks_learnt: Tensor
    atom_norm_max: Tensor

    def __init__(self, config: HimalayaStrictConfig, width: int, embedding_width: int | None = None) -> None:
        super().__init__()
        core, elastic = config.core_atoms, config.elastic_atoms
        atoms = core + elastic
        latent = latent_width(width, atoms, config.code_width, config.hidden_params)
        self.config = config
        self.dictionary = Dictionary(core, elastic, width, config.seed)
        self.slots = Slots(core, elastic)
        self.router = HyperRouter(atoms, width, latent, config.code_width, config.seed)
        self.tree = KDTree(elastic, latent, config.fanout, config.leaf_size) if config.index != "scan" else None
        self.statistics = TaskStatistics(atoms, elastic, latent + 1)
        self.update = Update(config, self.dictionary, self.slots, self.router, self.tree, self.statistics)
        self.growth = Growth(width, config.growth_window, config.similarity_threshold_tau)
        self.consolidation = Consolidation(atoms, config.code_width)
        self.protection = Protection(self.router.head[0].numel())
        self.memory = PromptMemory(width if embedding_width is None else embedding_width, config.code_width)
        self.register_buffer("tasks_learnt", torch.zeros((), dtype=torch.int64))
        self.register_buffer("atom_norm_max", torch.zeros(()))
        self.register_state_dict_post_hook(_name_as_in_files)
        self.register_load_state_dict_pre_hook(_name_by_owner)
        self.infers_task = False
        if self.router.head.is_meta:  # PEFT's low_cpu_mem_usage: all state is about to be loaded
            return
        self.start_task(NEUTRAL_TASK)  # plain PEFT use, without a stream, is one task without a name
        if not config.init_weights:
            nn.init.normal_(self.router.head, generator=torch.Generator().manual_seed(config.seed))

    def forward(self, hidden_states: Tensor, output_width: int) -> Tensor:
        """The update of a layer's output, as in `Update`.

        Raises:
            HimalayaError: The adapter was loaded from a release file, and it is trained.
        """
        if self.training and self.dictionary.elastic.requires_grad:
            self.refuse_if_released()
        return self.update(hidden_states, output_width)

    # Which task ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_task(self, name: str | None) -> None:
        """Route by the code of task ``name``, or by the one that each prompt's features say (``None``)."""
        self.infers_task = name is None
        self.update.clear_pass()
        self.router.name_task(name)

    def read_prompts(self, embeddings: Tensor, mask: Tensor) -> None:
        """Route each row, until the next prompts, as the task that its prompt looks like.

        Args:
            embeddings: Input embeddings of the prompts, ``(b, s, d)``.
            mask: 0 at padding, ``(b, s)``.
        """
        codes, _ = self.memory.infer(self.memory.features(embeddings, mask))
        self.router.read_prompts(codes)

    @property
    def prompt_memory(self) -> PromptMemory:
        """What tells a prompt's task."""
        return self.memory

    # How a task begins -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def start_task(self, name: str) -> list[Eviction]:
        """Begin to learn task ``name``: its code, atoms of its own, a head that is a no-op, empty statistics.

        Its share of the slots is what all tasks so far would get alike. Where all are taken, it gets the one that
        earlier tasks miss least; with ``evict=False`` none: it then learns with borrowed atoms.

        Returns:
            The evictions that made room for it.

        Raises:
            HimalayaError: The adapter was loaded from a release file.
        """
        self.refuse_if_released()
        self.set_task(name)
        self.update.anneal(0.0)
        if self.tasks_learnt == 0:
            self.slots.elastic_in_use.fill_(False)
        evictions = [self.evict()] if self.config.evict and self.slots.elastic_in_use.all() else []
        alike = self.config.elastic_atoms // (int(self.tasks_learnt) + 1)
        self.slots.allocate(self.config.atoms_per_task, alike)
        # Before anything is known about the task, what others rely on most is what it may borrow.
        self._fresh_start(name, pad(self.slots.importance, (self.config.core_atoms, 0)))
        self.statistics.clear()
        self.growth.restart()
        self.memory.task_moment.zero_()
        self.rebuild_tree()
        return evictions

    def _fresh_start(self, name: str, worth: Tensor) -> None:
        """Give task ``name`` a fresh head for its own atoms; without any, for those of others that are worth most."""
        slots, most = self.slots, self.config.expected_active_atoms
        serving = slots.own if slots.own.any() else slots.borrow(worth, most)
        self.protection.reset(self.router, self.router.fresh_head(name, serving, slots.in_use, most))

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
        curvature, own = curvature.double(), self.slots.own_elastic
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
        slots, core, importance = self.slots, self.config.core_atoms, self.slots.importance
        together = self.consolidation.used_together()
        candidates = slots.elastic_in_use.nonzero().flatten().tolist()
        stand_ins = {}
        if self.config.consolidate:
            residuals, atoms = self.growth.unit_residuals(), self.dictionary.atoms()
            steps = self.config.fisher_projection_steps
            stand_ins = {
                slot: self.consolidation.stand_in(atoms, core + slot, together, slots.in_use, residuals, steps)
                for slot in candidates
            }
        missed = {
            slot: importance[slot].item() * (1 - stand_ins[slot].survives if slot in stand_ins else 1)
            for slot in candidates
        }
        slot = min(candidates, key=lambda one: missed[one])
        event = Eviction(slot, importance=importance[slot].item())
        if slot in stand_ins:
            stand_in = stand_ins[slot]
            self.router.head.copy_(self.consolidation.imprint(self.router.head, core + slot, stand_in))
            self.consolidation.hand_over(core + slot, stand_in)
            if stand_in.newcomer >= core:
                importance[stand_in.newcomer - core] += importance[slot] * stand_in.survives
            event = replace(event, newcomer=stand_in.newcomer, survives=stand_in.survives)
        use = together[core + slot]
        slots.free(slot, missed[slot], partners=use[core:] > PARTNER_SHARE * use[core + slot])
        return event

    # Inside a task ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def before_step(self) -> dict[str, Tensor] | None:
        """Take note of this step's gradients by the atoms and by r.

        Returns:
            The parameters as they are; nothing if the step is skipped because it has no finite gradient.
        """
        head, elastic, probe = self.router.head, self.dictionary.elastic, self.update.probe
        gradients = [one.grad for one in (head, elastic) if one.grad is not None]
        if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
            self.skip_step()
            return None
        self.statistics.fold()
        share_maximum(self.update.update_norm_max)
        if elastic.grad is not None:
            self.statistics.observe_gradient(elastic.grad)
        if probe is not None and probe.grad is not None:
            residual = -sum_over_ranks(probe.grad)
            # Right after the head is reset the gain is rounding, and so is the direction of a residual.
            if residual.isfinite().all() and residual.norm() > SMALLEST_RESIDUAL * gradients[0].norm():
                residual = normalize(residual, dim=0)
                self.growth.observe(residual, self._similarity(residual))
        self.skip_step()
        return {"head": head.clone(), "elastic": elastic.clone()}

    def skip_step(self) -> None:
        """Forget what the passes since the last step have seen."""
        self.statistics.discard()
        if self.update.probe is not None:
            self.update.probe.grad = None

    @torch.no_grad()
    def after_step(self, before: dict[str, Tensor]) -> Promotion | None:
        """Take out of the optimiser's step what earlier tasks rely on, and put the atoms back on the sphere.

        Returns:
            The growth of the dictionary, if it is due.
        """
        self.update.clear_pass()
        elastic = self.dictionary.elastic
        elastic.copy_(torch.lerp(before["elastic"], elastic, self.config.atom_step))
        if self.config.protect:
            elastic.copy_(torch.where(self.slots.own_elastic[:, None], elastic, before["elastic"]))
            if self.tasks_learnt > 0:
                self.protection.project_step(self.router, before["head"])
        self.dictionary.return_to_sphere((elastic != before["elastic"]).any(1))
        self.atom_norm_max.fill_(max(self.atom_norm_max.item(), self.dictionary.largest_norm()))
        return self.grow() if self.config.grow and self.growth.due else None

    @torch.no_grad()
    def grow(self) -> Promotion | None:
        """Promote the residuals' main direction to an atom: in a free slot, or in the task's least useful one."""
        core, slots, elastic = self.config.core_atoms, self.slots, self.dictionary.elastic
        similarity, evicted, survives = self.growth.mean_similarity, None, None
        self.growth.restart()
        own = slots.own_elastic.nonzero().flatten()
        free = (~slots.elastic_in_use).nonzero().flatten()
        target = self.router.task_head(self.router.code).clone()
        coefficients = target[core + len(elastic) :]  # a view of the coefficient rows, and the gain's
        residuals = self.growth.unit_residuals().to(elastic.dtype)
        if len(free) and len(own) < self.config.atoms_per_task:
            slot = int(free[0])
        elif len(own) > 1:
            importance = (self.statistics.usage[core:] * self.statistics.fisher)[own]
            slot = evicted = int(own[importance.argmin()])
            if self.config.consolidate:
                others = core + own[own != slot]
                weights, survives = fisher_projection(
                    elastic[slot], self.dictionary.atoms()[others], residuals, self.config.fisher_projection_steps
                )
                coefficients[others] += weights[:, None] * coefficients[core + slot]
        else:
            return None  # what is left belongs to other tasks
        direction = principal_direction(residuals)
        target[core + slot], coefficients[core + slot] = 0, 0
        target[core + slot, -1], coefficients[core + slot, -1] = OWN_GATE, GROWN_COEFFICIENT
        self.protection.reset(self.router, target)
        elastic[slot] = direction
        slots.take(slot)
        self.statistics.fisher[slot] = 0
        self.rebuild_tree()
        return Promotion(slot, similarity, evicted, survives)

    @torch.no_grad()
    def forget_moments(self, optimizer: torch.optim.Optimizer, slot: int) -> None:
        """Zero the optimiser's moments of an atom that was overwritten: its row, its routing, the rebuilt tree."""
        atom, atoms = self.config.core_atoms + slot, len(self.slots.in_use)
        rows: list[tuple[Tensor, Any]] = [(self.dictionary.elastic, slot), (self.router.head, [atom, atoms + atom])]
        if self.tree is not None:
            rows.append((self.tree.thresholds, slice(None)))
        for parameter, index in rows:
            for moment in optimizer.state.get(parameter, {}).values():
                if torch.is_tensor(moment) and moment.shape == parameter.shape:
                    moment[index] = 0

    @torch.no_grad()
    def end_task(self) -> list[Event]:
        """Close the task: later steps keep off its features and its atoms. Nothing is evicted for it now."""
        self.statistics.fold()
        if self.config.protect:
            self.protection.keep(self.router, self.statistics.latent_moment)
        self.memory.learn(self.router.code)
        usage = self.statistics.usage
        self.consolidation.observe(self.router.code, usage)
        self.slots.count(usage[self.config.core_atoms :], self.statistics.fisher)
        self.tasks_learnt += 1
        return []

    # The tree --------------------------------------------------------------------------------------------------

    def _similarity(self, residual: Tensor) -> Tensor:
        """Cosine of a unit residual ``(d,)`` with the closest elastic atom or its opposite."""
        atoms, unused = self.dictionary.elastic, ~self.slots.elastic_in_use
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

    # What is reported ------------------------------------------------------------------------------------------

    def norm_certificate(self) -> dict[str, float]:
        """The largest norms seen in training."""
        return {"update_norm_max": self.update.update_norm_max.item(), "atom_norm_max": self.atom_norm_max.item()}

    def task_statistics(self) -> dict[str, Any]:
        """Expected and actual active atoms per token, usage of each atom (share of tokens), capacity left."""
        self.statistics.fold()
        tokens = self.statistics.tokens_seen.clamp_min(1).item()
        return {
            "expected_active_atoms": self.statistics.gate_total.item() / tokens,
            "active_atoms": self.statistics.atom_usage.sum().item() / tokens,
            "atom_usage": self.statistics.usage.tolist(),
            "head_directions_left": free_directions(self.protection.projector),
            "free_atoms": int((~self.slots.in_use).sum()),
        }


def _name_as_in_files(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    for name, owner in OWNERS.items():
        state[prefix + name] = state.pop(f"{prefix}{owner}.{name}")


def _name_by_owner(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    for name, owner in OWNERS.items():
        if prefix + name in state:
            state[f"{prefix}{owner}.{name}"] = state.pop(prefix + name)
