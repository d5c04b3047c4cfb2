"""One adapter through its stream: what it learns, protects, remembers and reports, shared by all layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Eviction, Promotion
from himalaya_adapter.methods.kd_tree import FAR
from himalaya_adapter.methods.prompt_memory import PromptMemory
from himalaya_adapter.methods.release import INFERENCE_ONLY

from .allocation import allocate, borrow, grow
from .config import HimalayaStrictConfig
from .consolidation import Consolidation
from .growth import Growth
from .protection import (
    free_directions,
    from_upper_triangle,
    kronecker_moment,
    lift,
    reset_head,
    shrink_projector,
    upper_triangle,
)
from .router import FINAL_TEMPERATURE_SHARE, task_code
from .statistics import share_maximum, sum_over_ranks
from .update import TINY, SharedUpdate

# Share of a task's feature energy that the head's later steps must leave alone (docs/method-strict.md, section 6).
PROTECTED_ENERGY = 0.99
PROJECTION_TOKENS = 4096
# Of the head's gradient; a residual grows with the gain, the head's gradient does not.
SMALLEST_RESIDUAL = 1e-5
NEUTRAL_TASK = ""


class SharedAdapter(SharedUpdate):
    """Everything that a HIMALAYA adapter stores; its size depends on neither the layers nor the tasks.

    All state that evolves is a parameter or a persistent buffer, so a checkpoint of the adapter is complete.

    Args:
        config: The method's configuration.
        width: Width ``d`` of the atoms: that of the hidden states, or of the widest target.
        embedding_width: Width of the input embeddings, if it is another one.
    """

    tasks_learnt: Tensor
    importance: Tensor
    head_triangle: Tensor
    atom_norm_max: Tensor
    own: Tensor

    def __init__(self, config: HimalayaStrictConfig, width: int, embedding_width: int | None = None) -> None:
        super().__init__(config, width)
        self.growth = Growth(width, config.growth_window, config.similarity_threshold_tau)
        self.consolidation = Consolidation(config.core_atoms + config.elastic_atoms, config.code_width)
        self.memory = PromptMemory(width if embedding_width is None else embedding_width, config.code_width)
        self.register_buffer("tasks_learnt", torch.zeros((), dtype=torch.int64))
        self.register_buffer("own", torch.zeros_like(self.in_use))
        self.register_buffer("importance", torch.zeros(config.elastic_atoms))
        self.register_buffer("head_triangle", upper_triangle(torch.eye(self.router.head[0].numel())))
        self.register_buffer("atom_norm_max", torch.zeros(()))
        self.infers_task = False
        if self.router.head.is_meta:  # PEFT's low_cpu_mem_usage: all state is about to be loaded
            return
        self.start_task(NEUTRAL_TASK)  # plain PEFT use, without a stream, is one task without a name
        if not config.init_weights:
            nn.init.normal_(self.router.head, generator=torch.Generator().manual_seed(config.seed))

    def forward(self, hidden_states: Tensor, output_width: int) -> Tensor:
        """The update of a layer's output, as in `SharedUpdate`.

        Raises:
            HimalayaError: The adapter was loaded from a release file, and it is trained.
        """
        if self.training and self.dictionary.elastic.requires_grad and self.packed is not None:
            raise HimalayaError(INFERENCE_ONLY)  # saving would not write what is learnt
        return super().forward(hidden_states, output_width)

    # The stream's life cycle -----------------------------------------------------------------------------------

    @torch.no_grad()
    def set_task(self, name: str | None) -> None:
        """Route by the code of task ``name``, or by the one that each prompt's features say (``None``)."""
        self.infers_task = name is None
        self._row_codes = None
        self._forget_pass()
        if name is not None:
            self.code.copy_(task_code(name, self.config.code_width))

    def read_prompts(self, embeddings: Tensor, mask: Tensor) -> None:
        """Route each row, until the next prompts, as the task that its prompt looks like.

        Args:
            embeddings: Input embeddings of the prompts, ``(b, s, d)``.
            mask: 0 at padding, ``(b, s)``.
        """
        codes, _ = self.memory.infer(self.memory.features(embeddings, mask))
        codes = codes.to(self.code.dtype)
        self._row_codes = codes[0] if bool((codes == codes[0]).all()) else codes

    @torch.no_grad()
    def observe_prompts(self, embeddings: Tensor, mask: Tensor) -> None:
        """Remember what prompts of the current task look like: input embeddings ``(b, s, d)``, mask ``(b, s)``."""
        self.memory.observe_prompts(embeddings, mask)

    @torch.no_grad()
    def start_task(self, name: str) -> list[Eviction]:
        """Begin to learn task ``name``: its code, atoms of its own, a head that is a no-op, empty statistics.

        Returns:
            The evictions that made room for it.

        Raises:
            HimalayaError: The adapter was loaded from a release file.
        """
        if self.packed is not None:
            raise HimalayaError(INFERENCE_ONLY)
        self.set_task(name)
        self.temperature = self.config.temperature_init
        evictions = allocate(self)
        # Before anything is known about the task, what others rely on most is what it may borrow.
        self._fresh_start(name, pad(self.importance, (self.config.core_atoms, 0)))
        self.statistics.clear()
        self.growth.restart()
        self.memory.task_moment.zero_()
        self.rebuild_tree()
        return evictions

    def _fresh_start(self, name: str, worth: Tensor) -> None:
        """Give task ``name`` a fresh head for its own atoms; without any, for those of others that are worth most."""
        serving = self.own if self.own.any() else borrow(self, worth)
        fresh = self.router.fresh_head(name, serving, self.in_use, self.config.expected_active_atoms)
        self.router.head.copy_(reset_head(self.router.head, fresh, self.head_projector, self.code))

    @property
    def head_projector(self) -> Tensor:
        """The projector onto the directions in which the head may still move, ``(F, F)``, ``F = (p + 1) e``."""
        return from_upper_triangle(self.head_triangle)

    @property
    def own_elastic(self) -> Tensor:
        """Mask of the elastic atoms that the task may move, ``(k_e,)``."""
        return self.own[self.config.core_atoms :]

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
        curvature = curvature.double()
        values, vectors = torch.linalg.eigh(curvature)
        # All of one sign: the atoms of a token share its gain.
        positive = values[-1] >= -values[0]
        count = int(self.own_elastic.sum())
        if count == 0:
            atoms = self.dictionary.atoms().double()
            worth = ((atoms @ curvature) * atoms).sum(1)
            self._fresh_start(name, worth if positive else -worth)
            return
        leading = vectors[:, -count:] if positive else vectors[:, :count]
        # An eigenvector's sign is open; fix it, so that every machine starts alike.
        signs = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
        self.dictionary.elastic[self.own_elastic] = (leading * signs).T.to(self.dictionary.elastic.dtype)
        self.rebuild_tree()

    def anneal(self, progress: float) -> None:
        """Lower the gates' temperature linearly; ``progress`` in [0, 1] is the share of the task's steps done."""
        self.temperature = self.config.temperature_init * (1 - (1 - FINAL_TEMPERATURE_SHARE) * progress)

    @torch.no_grad()
    def before_step(self) -> dict[str, Tensor] | None:
        """Take note of this step's gradients by the atoms and by r.

        Returns:
            The parameters as they are; nothing if the step is skipped because it has no finite gradient.
        """
        gradients = [one.grad for one in (self.router.head, self.dictionary.elastic) if one.grad is not None]
        probed = self._probe.grad if self._probe is not None else None
        if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
            self.skip_step()
            return None
        self.statistics.fold()
        share_maximum(self.update_norm_max)
        if self.dictionary.elastic.grad is not None:
            self.statistics.observe_gradient(self.dictionary.elastic.grad)
        if probed is not None:
            residual = -sum_over_ranks(probed)
            # Right after the head is reset the gain is rounding, and so is the direction of a residual.
            if residual.isfinite().all() and residual.norm() > SMALLEST_RESIDUAL * gradients[0].norm():
                residual = normalize(residual, dim=0)
                self.growth.observe(residual, self._similarity(residual))
        self.skip_step()
        return {"head": self.router.head.clone(), "elastic": self.dictionary.elastic.clone()}

    def skip_step(self) -> None:
        """Forget what the passes since the last step have seen."""
        self.statistics.discard()
        if self._probe is not None:
            self._probe.grad = None

    def _similarity(self, residual: Tensor) -> Tensor:
        """Cosine of a unit residual ``(d,)`` with the closest elastic atom or its opposite."""
        atoms = self.dictionary.elastic
        unused = ~self.in_use[self.config.core_atoms :]
        cosines = (atoms @ residual).abs().masked_fill(unused, 0)
        if self.tree is None:
            return cosines.max()
        query, keys = self._keys(residual[None]), self._keys(atoms).masked_fill(unused[:, None], FAR)
        return cosines[self.tree.nearest(torch.cat([query, -query]), keys)].max()

    def _keys(self, vectors: Tensor) -> Tensor:
        """Keys ``(n, p)`` of unit vectors ``(n, d)`` in the tree: their latent coordinates at a token's length."""
        return vectors @ self.router.projection.T * self.width**0.5

    def rebuild_tree(self) -> None:
        """Fit the tree to the atoms as they are now."""
        if self.tree is not None:
            self.tree.build(self._keys(self.dictionary.elastic))

    @torch.no_grad()
    def after_step(self, before: dict[str, Tensor]) -> Promotion | None:
        """Take out of the optimiser's step what earlier tasks rely on, and put the atoms back on the sphere.

        Returns:
            The growth of the dictionary, if it is due: ``slot`` names the elastic atom that was overwritten.
        """
        self._forget_pass()
        head, elastic = self.router.head, self.dictionary.elastic
        elastic.copy_(torch.lerp(before["elastic"], elastic, self.config.atom_step))
        if self.config.protect:
            elastic.copy_(torch.where(self.own_elastic[:, None], elastic, before["elastic"]))
            if self.tasks_learnt > 0:
                own_step = self.router.task_head(self.code) - before["head"] @ self.code
                head.copy_(before["head"] + (own_step.double() @ lift(self.head_projector, self.code)).view_as(head))
        self.dictionary.return_to_sphere((elastic != before["elastic"]).any(1))
        self.atom_norm_max.fill_(max(self.atom_norm_max.item(), self.dictionary.largest_norm()))
        return grow(self) if self.config.grow and self.growth.due else None

    @torch.no_grad()
    def end_task(self) -> None:
        """Close the task: later steps keep off its features and its atoms."""
        self.statistics.fold()
        if self.config.protect:
            moment = kronecker_moment(self.statistics.latent_moment, self.code)
            projector = shrink_projector(self.head_projector, moment, PROTECTED_ENERGY)
            self.head_triangle.copy_(upper_triangle(projector))
        self.memory.learn(self.code)
        usage = self.statistics.usage
        self.consolidation.observe(self.code, usage)
        # An atom that the task owned is never free again, even if its last gradients vanished.
        elastic_usage = usage[self.config.core_atoms :]
        used = self.own_elastic | (elastic_usage > 0)
        missed = (elastic_usage * self.statistics.fisher).clamp_min(TINY) * used
        self.importance += missed / missed.sum().clamp_min(TINY)  # in shares of a task, whatever its gradients' size
        self.tasks_learnt += 1

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
            "head_directions_left": free_directions(self.head_projector),
            "free_atoms": int((~self.in_use).sum()),
        }
