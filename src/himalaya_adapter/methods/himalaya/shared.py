"""The state of one adapter: dictionary, router, protection and what is measured, shared by all layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .config import HimalayaConfig
from .dictionary import Dictionary, outer_norm, rank_one_update
from .protection import (
    free_directions,
    kronecker_moment,
    remove_span,
    reset_head,
    shrink_projector,
    shrink_sketch,
)
from .router import (
    FINAL_TEMPERATURE_SHARE,
    HyperRouter,
    gate_probabilities,
    hard_gates,
    latent_width,
    task_code,
)

# Share of a task's feature energy that the head's later steps must leave alone (docs/method.md, section 6).
PROTECTED_ENERGY = 0.99
# Rows of the Frequent Directions sketches: of all past tasks, and of the current one.
SKETCH_ROWS, TASK_SKETCH_ROWS = 96, 32
# Gradients of the last steps say what a learnt task relies on; those of the first steps say what it lacked.
STATISTICS_DECAY = 0.9
PROJECTION_TOKENS = 4096
MASKED = -1e4
TINY = torch.finfo(torch.float32).tiny
NEUTRAL_TASK = ""


class SharedAdapter(nn.Module):
    """Everything that a HIMALAYA adapter stores; its size depends on neither the layers nor the tasks.

    All state that evolves is a parameter or a persistent buffer, so a checkpoint of the adapter is complete.

    Args:
        config: The method's configuration.
        width: Width ``d`` of the atoms: that of the hidden states, or of the widest target.
    """

    # Of the whole stream.
    tasks_learnt: Tensor
    in_use: Tensor
    importance: Tensor
    head_projector: Tensor
    atom_sketch: Tensor
    update_norm_max: Tensor
    atom_norm_max: Tensor
    # Of the current task; cleared at its start.
    code: Tensor
    own: Tensor
    latent_moment: Tensor
    task_sketch: Tensor
    fisher: Tensor
    atom_usage: Tensor
    gate_total: Tensor
    tokens_seen: Tensor

    def __init__(self, config: HimalayaConfig, width: int) -> None:
        super().__init__()
        core, elastic = config.core_atoms, config.elastic_atoms
        atoms = core + elastic
        latent = latent_width(width, atoms, config.code_width, config.hidden_params)
        features = (latent + 1) * config.code_width
        self.config = config
        self.width = width
        self.temperature = config.temperature_init
        self.dictionary = Dictionary(core, elastic, width, config.seed)
        self.router = HyperRouter(atoms, width, latent, config.code_width, config.seed)
        self.register_buffer("tasks_learnt", torch.zeros((), dtype=torch.int64))
        self.register_buffer("in_use", torch.arange(atoms) < core)
        self.register_buffer("importance", torch.zeros(elastic))
        self.register_buffer("head_projector", torch.eye(features))
        self.register_buffer("atom_sketch", torch.zeros(SKETCH_ROWS, width, dtype=torch.bfloat16))
        self.register_buffer("update_norm_max", torch.zeros(()))
        self.register_buffer("atom_norm_max", torch.zeros(()))
        self.register_buffer("code", torch.zeros(config.code_width))
        self.register_buffer("own", torch.zeros(atoms, dtype=torch.bool))
        self.register_buffer("latent_moment", torch.zeros(latent + 1, latent + 1))
        self.register_buffer("task_sketch", torch.zeros(TASK_SKETCH_ROWS, width, dtype=torch.bfloat16))
        self.register_buffer("fisher", torch.zeros(elastic))
        self.register_buffer("atom_usage", torch.zeros(atoms))
        self.register_buffer("gate_total", torch.zeros(()))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.float64))
        self.start_task(NEUTRAL_TASK)  # plain PEFT use, without a stream, is one task without a name
        if not config.init_weights:
            nn.init.normal_(self.router.head, generator=torch.Generator().manual_seed(config.seed))

    def forward(self, hidden_states: Tensor, output_width: int) -> Tensor:
        """The update for inputs ``(..., n)`` of a module with ``output_width`` outputs: ``(..., output_width)``."""
        with torch.autocast(hidden_states.device.type, enabled=False):  # the norms need the precision chosen here
            return self._update(hidden_states, output_width)

    def _update(self, hidden_states: Tensor, output_width: int) -> Tensor:
        width = hidden_states.shape[-1]
        # Rounded to the input's precision before anything is computed from them: the norms then hold exactly.
        atoms = self.dictionary.atoms().to(hidden_states.dtype)
        atoms_in = atoms[:, :width]
        atoms_out = atoms_in if output_width == width else atoms[:, :output_width]
        maps = torch.cat([self.router.projection[:, :width].to(hidden_states.dtype), atoms_in])
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        rms = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True, dtype=wide) / width**0.5
        projected = linear(hidden_states, maps).to(wide)
        normalised = projected / rms.clamp_min(torch.finfo(torch.float32).tiny)
        latent = len(maps) - len(atoms)
        coefficients, gain = self.route(self.router.latent(normalised[..., :latent]))
        # A weight acts on its input as it is, the skip path on the normalised one.
        projections = (projected if self.config.placement == "weights" else normalised)[..., latent:]
        if self.config.norm_target == "residual":
            gain = gain / self.width**0.5
        if self.training:
            self._certify(coefficients, gain, atoms_in, atoms_out)
        return rank_one_update(projections, coefficients, gain, atoms_in, atoms_out)

    def route(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        r"""Coefficients :math:`u` ``(..., k)``, at most `expected_active_atoms` not 0, and the gain ``(..., 1)``."""
        most = self.config.expected_active_atoms
        outputs = linear(latents, self.router.task_head(self.code).to(latents.dtype))
        atoms = outputs.shape[-1] // 2
        logits, coefficients, raw_gain = outputs.split([atoms, atoms, 1], dim=-1)
        logits = logits.masked_fill(~self.in_use, MASKED)
        gain = torch.ones_like(raw_gain) if self.config.gain == "fixed" else torch.tanh(raw_gain)
        if not self.training:
            temperature = self.config.temperature_init * FINAL_TEMPERATURE_SHARE
            shifted, _ = gate_probabilities(logits, most, temperature)
            return hard_gates(shifted, most) * coefficients, gain
        shifted, probabilities = gate_probabilities(logits, most, self.temperature)
        uniform = torch.rand_like(shifted).clamp_(1e-6, 1 - 1e-6)
        noisy = shifted + self.temperature * torch.logit(uniform)  # a relaxed Bernoulli(pi) sample
        soft = torch.sigmoid(noisy / self.temperature)
        hard = hard_gates(noisy.detach(), most)
        with torch.no_grad():
            tokens = latents.detach().reshape(-1, latents.shape[-1])
            self.latent_moment += tokens.T @ tokens
            self.atom_usage += hard.reshape(-1, atoms).sum(0)
            self.gate_total += probabilities.sum()
            self.tokens_seen += len(tokens)
        return (hard + soft - soft.detach()) * coefficients, gain

    @torch.no_grad()
    def _certify(self, coefficients: Tensor, gain: Tensor, atoms_in: Tensor, atoms_out: Tensor) -> None:
        """Measure the norm of the strongest token's update on its dense vectors and keep the largest seen."""
        strongest = gain.abs().argmax()
        u = coefficients.reshape(-1, coefficients.shape[-1])[strongest].double()
        dense = (u @ atoms_in.double()).norm() * (u @ atoms_out.double()).norm()
        norm = gain.abs().amax() * dense / outer_norm(u.to(coefficients.dtype), atoms_in, atoms_out).squeeze()
        self.update_norm_max.copy_(torch.maximum(self.update_norm_max, norm.to(self.update_norm_max.dtype)))

    # The stream's life cycle -----------------------------------------------------------------------------------

    @torch.no_grad()
    def set_task(self, name: str) -> None:
        """Route by the code of task ``name``."""
        self.code.copy_(task_code(name, self.config.code_width))

    @torch.no_grad()
    def start_task(self, name: str) -> None:
        """Begin to learn task ``name``: its code, atoms of its own, a head that is a no-op, empty statistics."""
        self.set_task(name)
        self.temperature = self.config.temperature_init
        self._allocate()
        fresh = self.router.fresh_head(name, self.own, self.in_use)
        self.router.head.copy_(reset_head(self.router.head, fresh, self.head_projector, self.code))
        self.latent_moment.zero_()
        self.task_sketch.zero_()
        self.fisher.zero_()
        self.atom_usage.zero_()
        self.gate_total.zero_()
        self.tokens_seen.zero_()

    def _allocate(self) -> None:
        """Give the task the elastic atoms that matter least to earlier ones; a free slot matters nothing."""
        core = self.config.core_atoms
        if self.tasks_learnt == 0:
            self.in_use[core:] = False
        chosen = self.importance.argsort(stable=True)[: self.config.atoms_per_task]
        self.own.zero_()
        self.own[core + chosen] = True
        self.in_use |= self.own

    @property
    def _own_elastic(self) -> Tensor:
        """Mask of the elastic atoms that the task may move, ``(k_e,)``."""
        return self.own[self.config.core_atoms :]

    @torch.no_grad()
    def fit_projection(self, inputs: Tensor) -> None:
        """Set the latent directions from normalised inputs ``(n, d)``, of which an even selection is looked at."""
        self.router.fit_projection(inputs[:: max(1, len(inputs) // PROJECTION_TOKENS)])

    @torch.no_grad()
    def promote(self, curvature: Tensor) -> None:
        """Point the task's free atoms at the leading eigenvectors of its first residuals ``(d, d)``."""
        free = self._own_elastic & (self.importance == 0)
        count = int(free.sum())
        if count == 0:
            return
        values, vectors = torch.linalg.eigh(curvature.double())
        # All of one sign: the atoms of a token share its gain.
        leading = vectors[:, -count:] if values[-1] >= -values[0] else vectors[:, :count]
        # An eigenvector's sign is open; fix it, so that every machine starts alike.
        signs = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
        self.dictionary.elastic[free] = (leading * signs).T.to(self.dictionary.elastic.dtype)

    def anneal(self, progress: float) -> None:
        """Lower the gates' temperature linearly; ``progress`` in [0, 1] is the share of the task's steps done."""
        self.temperature = self.config.temperature_init * (1 - (1 - FINAL_TEMPERATURE_SHARE) * progress)

    @torch.no_grad()
    def before_step(self) -> dict[str, Tensor]:
        """Take note of this step's gradients by the atoms; returns the parameters as they are."""
        gradient = self.dictionary.elastic.grad
        if gradient is not None:
            rows = torch.cat([STATISTICS_DECAY * self.task_sketch.float(), gradient[self._own_elastic].float()])
            self.task_sketch.copy_(shrink_sketch(rows, TASK_SKETCH_ROWS))
            self.fisher.mul_(STATISTICS_DECAY).add_(gradient.square().sum(1))
        return {"head": self.router.head.clone(), "elastic": self.dictionary.elastic.clone()}

    @torch.no_grad()
    def after_step(self, before: dict[str, Tensor]) -> None:
        """Take out of the optimiser's step what earlier tasks rely on, and put the atoms back on the sphere."""
        head, elastic = self.router.head, self.dictionary.elastic
        if self.config.protect:
            elastic.copy_(self._allowed(before["elastic"], elastic))
            if self.tasks_learnt > 0:
                step = (head - before["head"]).flatten(1)
                head.copy_(before["head"] + (step @ self.head_projector).view_as(head))
        moved = (elastic != before["elastic"]).any(1)
        self.dictionary.return_to_sphere(moved)
        self.atom_norm_max.fill_(max(self.atom_norm_max.item(), self.dictionary.largest_norm()))

    def _allowed(self, before: Tensor, after: Tensor) -> Tensor:
        """Elastic atoms after a step: free own ones as stepped, reused ones off the sketch, all others as before."""
        own, free = self._own_elastic, self.importance == 0
        kept = before
        if (own & ~free).any():
            kept = torch.where(own[:, None], before + remove_span(after - before, self.atom_sketch), before)
        return torch.where((own & free)[:, None], after, kept)

    @torch.no_grad()
    def end_task(self) -> None:
        """Close the task: later steps keep off its features, its atoms and its gradients."""
        if self.config.protect:
            moment = kronecker_moment(self.latent_moment, self.code)
            self.head_projector.copy_(shrink_projector(self.head_projector, moment, PROTECTED_ENERGY))
            self.atom_sketch.copy_(shrink_sketch(torch.cat([self.atom_sketch, self.task_sketch]).float(), SKETCH_ROWS))
        usage = self.atom_usage[self.config.core_atoms :] / self.tokens_seen.clamp_min(1)
        # An atom that the task owned is never free again, even if its last gradients vanished.
        self.importance += (usage * self.fisher).clamp_min(TINY) * (self._own_elastic | (usage > 0))
        self.tasks_learnt += 1

    # What is reported ------------------------------------------------------------------------------------------

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of every stored tensor, by its name."""
        return {name: tensor.numel() * tensor.element_size() for name, tensor in self.state_dict().items()}

    def norm_certificate(self) -> dict[str, float]:
        """The largest norms seen in training."""
        return {"update_norm_max": self.update_norm_max.item(), "atom_norm_max": self.atom_norm_max.item()}

    def task_statistics(self) -> dict[str, Any]:
        """Expected and actual active atoms per token, usage of each atom (share of tokens), capacity left."""
        tokens = self.tokens_seen.clamp_min(1).item()
        return {
            "expected_active_atoms": self.gate_total.item() / tokens,
            "active_atoms": self.atom_usage.sum().item() / tokens,
            "atom_usage": (self.atom_usage / tokens).tolist(),
            "head_directions_left": free_directions(self.head_projector),
            "free_atoms": int((~self.in_use).sum()),
        }
