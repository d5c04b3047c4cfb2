"""What answers: from a layer's input to its update, the same for all layers (docs/method-strict.md, 1 to 4)."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from himalaya_adapter.methods.kd_tree import KDTree, Leaves
from himalaya_adapter.methods.shared_state import SharedState

from .config import HimalayaStrictConfig
from .dictionary import TINY, Dictionary, gram, rank_one_update, unit_coefficients
from .prompt_memory import DiscriminantMemory
from .router import FINAL_TEMPERATURE_SHARE, HyperRouter, final_gates, latent_width, relaxed_gates, task_code
from .statistics import TaskStatistics

MASKED = -1e4
# The tree may raise one atom's gate over another's by this much (in logits), too little to undo a task's own choice.
LARGEST_TREE_BONUS = 0.5


class Maps(NamedTuple):
    """What all layers of one shape compute with, made once per pass of the model.

    ``k`` atoms: all, and in training a probe row.
    """

    inward: Tensor  # latent directions, then atoms: (p + k, n)
    atoms_out: Tensor  # (k, m)
    gram_in: Tensor
    gram_out: Tensor


class Routes(NamedTuple):
    """What routes the tokens of all layers, made once per pass of the model: one head, or one per row of the batch."""

    head: Tensor  # (2k + 1, p) or (b, 2k + 1, p)
    bias: Tensor  # (2k + 1,) or (b, 1, 2k + 1), atoms not in use are closed
    leaves: Leaves | None


class Answering(SharedState):
    """All that an adapter answers with, which is what a release file holds, and what belongs to one pass of the model.

    Args:
        config: The method's configuration.
        width: Width ``d`` of the atoms: that of the hidden states, or of the widest target.
        embedding_width: Width of the input embeddings, if it is another one.
    """

    def __init__(self, config: HimalayaStrictConfig, width: int, embedding_width: int | None = None) -> None:
        super().__init__()
        core, elastic = config.core_atoms, config.elastic_atoms
        atoms = core + elastic
        latent = latent_width(width, atoms, config.code_width, config.hidden_params)
        self.config = config
        self.dictionary = Dictionary(core, elastic, width, config.seed)
        self.router = HyperRouter(atoms, width, latent, config.code_width, config.seed)
        # Its membership moves the gates; none for a scan.
        self.tree = KDTree(elastic, latent, config.fanout, config.leaf_size) if config.index != "scan" else None
        self.statistics = TaskStatistics(atoms, elastic, latent + 1)
        self.memory = DiscriminantMemory(width if embedding_width is None else embedding_width, config.code_width)
        self.in_use = nn.Buffer(torch.arange(atoms) < core)  # which atoms hold something
        self.code = nn.Buffer(torch.zeros(config.code_width))  # of the task being learnt, or answered
        self.update_norm_max = nn.Buffer(torch.zeros(()))
        self.infers_task = False
        # The codes inferred from a batch's prompts, ``(batch, e)``, or that of all, ``(e,)``; none for a named task.
        self.prompt_codes: Tensor | None = None
        self.temperature = config.temperature_init
        # A zero vector added to r: its gradient is that of the loss by r, summed over tokens and layers.
        self.probe: Tensor | None = None
        # Made anew for each pass of the model, for all layer shapes known, in the order in which they were seen: that
        # is the order in which a pass adds up their gradients.
        self._maps: dict[tuple[int, int, torch.dtype], Maps | None] = {}
        self._routes: Routes | None = None
        self._tokens: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies leave out what belongs to a pass: it is part of that pass's graph."""
        nothing = {"_maps": dict.fromkeys(self._maps), "_routes": None, "_tokens": None, "probe": None}
        return super().__getstate__() | nothing

    # Which task ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_task(self, name: str | None) -> None:
        """Route by the code of task ``name``, or by the one that each prompt's features say (``None``)."""
        self.infers_task, self.prompt_codes = name is None, None
        self.clear_pass()
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

    def anneal(self, progress: float) -> None:
        """Lower the gates' temperature linearly; ``progress`` in [0, 1] is the share of the task's steps done."""
        self.temperature = self.config.temperature_init * (1 - (1 - FINAL_TEMPERATURE_SHARE) * progress)

    # One pass of the model -------------------------------------------------------------------------------------

    def begin_pass(self, tokens: Tensor | None) -> None:
        """Called before each pass of the model: what the layers share is made once, before the first of them.

        Args:
            tokens: Mask of the tokens that are not padding, ``(batch, length)``; ``None`` if all count.
        """
        self._tokens = tokens
        if self._growing:
            self._set_up_probe()  # a compiled layer could not make a leaf
        with torch.autocast(self.code.device.type, enabled=False):  # as in `forward`
            self._routes = self._make_routes()
            self._maps = {shape: self._make_maps(*shape) for shape in self._maps}

    def clear_pass(self) -> None:
        """Make anew what the layers share: it has changed, and a part of the model may be called by itself."""
        self._maps, self._routes = dict.fromkeys(self._maps), None

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, as for every module."""
        self.clear_pass()  # the probe is there in training only
        return super().train(mode)

    @property
    def _growing(self) -> bool:
        return self.training and self.config.grow and self.dictionary.elastic.requires_grad

    def _set_up_probe(self) -> Tensor:
        like = self.dictionary.elastic
        if self.probe is None or (self.probe.device, self.probe.dtype) != (like.device, like.dtype):
            self.probe = like.new_zeros(self.dictionary.width, requires_grad=True)
        return self.probe

    def _make_maps(self, width: int, output_width: int, dtype: torch.dtype) -> Maps:
        # Rounded to the input's precision before anything is computed from them: the norms then hold exactly.
        atoms, projection = self.dictionary.atoms().to(dtype), self.router.projection
        count = len(atoms)
        if self._growing:
            atoms = torch.cat([atoms, self._set_up_probe()[None].to(dtype)])
        inward = torch.cat([projection[:, :width].to(dtype), atoms[:, :width]])
        gram_in = gram(atoms[:count, :width])
        if width == output_width:  # one copy in memory: a decoded token finds it in no cache
            return Maps(inward, inward[len(projection) :], gram_in, gram_in)
        return Maps(inward, atoms[:, :output_width], gram_in, gram(atoms[:count, :output_width]))

    def _make_routes(self) -> Routes:
        head = self.router.task_head(self.code if self.prompt_codes is None else self.prompt_codes)
        open_rows = pad(self.in_use, (0, len(self.in_use) + 1), value=True)
        bias = head[..., -1].masked_fill(~open_rows, MASKED)
        head = head[..., :-1].masked_fill(~open_rows[:, None], 0)
        leaves = None if self.tree is None else self.tree.as_leaves()
        return Routes(head, bias if head.dim() == 2 else bias[:, None], leaves)

    def forward(self, hidden_states: Tensor, output_width: int) -> Tensor:
        """The update for inputs ``(..., n)`` of a module with ``output_width`` outputs: ``(..., output_width)``.

        Raises:
            HimalayaError: The adapter was loaded from a release file, and it is trained.
        """
        if self.training and self.dictionary.elastic.requires_grad:
            self.refuse_if_released()
        device = hidden_states.device.type
        # The norms need the precision chosen here. A context for each layer and token takes longer than a product.
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            return self._update(hidden_states, output_width)

    def _update(self, hidden_states: Tensor, output_width: int) -> Tensor:
        width, dtype = hidden_states.shape[-1], hidden_states.dtype
        if self._routes is not None and self._routes.head.requires_grad and not torch.is_grad_enabled():
            self.clear_pass()  # reentrant checkpointing: each layer will want a graph of its own
        # A layer shape is new in the very first pass only. Its maps are not kept then: gradient checkpointing runs a
        # layer twice and wants the same operations both times.
        shape = width, output_width, dtype
        maps = self._maps.setdefault(shape, None) or self._make_maps(*shape)
        wide = torch.promote_types(dtype, torch.float32)
        rms = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True, dtype=wide) / width**0.5
        projected = linear(hidden_states, maps.inward).to(wide)
        latent = len(self.router.projection)
        normalised = projected / rms.clamp_min(TINY)
        latents, projections = normalised.split([latent, len(maps.inward) - latent], dim=-1)
        coefficients, gain = self.route(latents)
        if self.config.placement == "weights":  # they act on their input as it is, the skip path on the normalised one
            projections = projected[..., latent:]
        if self.config.norm_target == "residual":
            gain = gain / self.dictionary.width**0.5
        unit_in = self._unit_coefficients(coefficients, maps.gram_in)
        unit_out = unit_in if maps.gram_out is maps.gram_in else self._unit_coefficients(coefficients, maps.gram_out)
        if self.training:
            self._certify(gain, unit_in, unit_out, maps)
        return rank_one_update(projections, gain, unit_in, unit_out, maps.atoms_out)

    def _unit_coefficients(self, coefficients: Tensor, gram: Tensor) -> Tensor:
        """Those of r, the probe's among them while there is one."""
        unit = unit_coefficients(coefficients, gram)
        return pad(unit, (0, 1), value=1.0) if self._growing else unit

    def route(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        r"""Which atoms serve tokens whose normalised input has the projections :math:`P \hat x` ``(..., p)``.

        Returns:
            Coefficients :math:`u` ``(..., k)``, at most `expected_active_atoms` not 0, and the gain ``(..., 1)``.
        """
        most, atoms = self.config.expected_active_atoms, len(self.in_use)
        routes = self._routes or self._make_routes()
        centred = projected - self.router.offset
        latents = torch.tanh(centred)
        head, bias = routes.head.to(latents.dtype), routes.bias.to(latents.dtype)
        if head.dim() == 2:
            outputs = linear(latents, head, bias)
        else:  # one head per row of the batch, which some models flatten
            outputs = torch.baddbmm(bias, latents.reshape(len(head), -1, latents.shape[-1]), head.mT)
            outputs = outputs.reshape(*latents.shape[:-1], -1)
        logits, coefficients, raw_gain = outputs.split([atoms, atoms, 1], dim=-1)
        if routes.leaves is not None:
            membership = routes.leaves.log_membership(centred)
            below = membership.amax(-1, keepdim=True) - membership
            # The bonus -x / (1 + 2x): bounded, and with a gradient everywhere.
            bonus = below / torch.rsub(below, -1, alpha=1 / LARGEST_TREE_BONUS)
            logits = logits + pad(bonus, (self.config.core_atoms, 0))
        gain = torch.ones_like(raw_gain) if self.config.gain == "fixed" else torch.tanh(raw_gain)
        if not self.training:
            temperature = self.config.temperature_init * FINAL_TEMPERATURE_SHARE
            return final_gates(logits, most, temperature) * coefficients, gain
        # One draw per atom and layer, for all tokens: it is the same however a batch is spread over processes.
        uniform = torch.rand(atoms, device=logits.device).clamp_(1e-6, 1 - 1e-6)
        gates, expected = relaxed_gates(logits, torch.logit(uniform), most, self.temperature)
        self.statistics.add(pad(latents, (0, 1), value=1.0), gates, expected, self._tokens)
        return gates * coefficients, gain

    @torch.no_grad()
    def _certify(self, gain: Tensor, unit_in: Tensor, unit_out: Tensor, maps: Maps) -> None:
        """Measure the norm of the strongest token's update on its dense vectors and keep the largest seen."""
        gain, strongest = gain.abs().flatten().max(0, keepdim=True)

        def length(unit: Tensor, atoms: Tensor) -> Tensor:  # by `index_select`, for which a GPU does not wait
            return (unit.reshape(-1, unit.shape[-1]).index_select(0, strongest).double() @ atoms.double()).norm()

        length_in = length(unit_in, maps.inward[len(self.router.projection) :])
        length_out = length_in if unit_out is unit_in else length(unit_out, maps.atoms_out)
        norm = (gain * length_in * length_out)[0]
        # `fmax` ignores what is not a number: such a pass is dropped before it changes anything.
        self.update_norm_max.copy_(torch.fmax(self.update_norm_max, norm.to(self.update_norm_max.dtype)))
