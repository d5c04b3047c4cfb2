"""The self-normalising rank-one update, and what routes its tokens (docs/method-strict.md, sections 2 to 4)."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from himalaya_adapter.methods.kd_tree import KDTree, Leaves

from .config import HimalayaStrictConfig
from .dictionary import TINY, Dictionary
from .router import FINAL_TEMPERATURE_SHARE, HyperRouter, final_gates, relaxed_gates
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


@dataclass(eq=False)
class Update:
    """The update of every layer. It stores nothing; its own is what belongs to one pass of the model.

    Args:
        config: The adapter's.
        dictionary: The atoms.
        router: What the tokens are routed by.
        tree: Its membership moves the gates; none for a scan.
        statistics: Where passes of training are noted.
    """

    config: HimalayaStrictConfig
    dictionary: Dictionary
    router: HyperRouter
    tree: KDTree | None
    statistics: TaskStatistics
    # The share of the task's steps that are done.
    progress: float = 0.0
    # A zero vector added to r: its gradient is that of the loss by r, summed over tokens and layers.
    probe: Tensor | None = None
    # Made anew for each pass of the model, for all layer shapes known, in the order in which they were seen: that is
    # the order in which a pass adds up their gradients.
    _maps: dict[tuple[int, int, torch.dtype], Maps | None] = field(default_factory=dict)
    _routes: Routes | None = None
    _tokens: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies leave out what belongs to a pass: it is part of that pass's graph."""
        nothing = {"_maps": dict.fromkeys(self._maps), "_routes": None, "_tokens": None, "probe": None}
        return self.__dict__ | nothing

    @property
    def temperature(self) -> float:
        """That of the gates in training, which falls linearly over a task."""
        return self.config.temperature_init * (1 - (1 - FINAL_TEMPERATURE_SHARE) * self.progress)

    # One pass of the model -------------------------------------------------------------------------------------

    def begin_pass(self, code: Tensor, in_use: Tensor, tokens: Tensor | None) -> None:
        """Called before each pass of the model: what the layers share is made once, before the first of them.

        Args:
            code: The code of the task that answers, ``(e,)``, or of each row's, ``(b, e)``.
            in_use: Mask of the atoms that hold something, ``(k,)``.
            tokens: Mask of the tokens that are not padding, ``(batch, length)``; ``None`` if all count.
        """
        self._tokens = tokens
        if self._grows:
            self._set_up_probe()  # a compiled layer could not make a leaf
        with torch.autocast(code.device.type, enabled=False):  # as for a layer
            self._routes = self.routes(code, in_use)
            self._maps = {shape: self._make_maps(*shape) for shape in self._maps}

    def clear_pass(self) -> None:
        """Make anew what the layers share: it has changed, and a part of the model may be called by itself."""
        self._maps, self._routes = dict.fromkeys(self._maps), None

    @property
    def trains(self) -> bool:
        """Whether a pass now is one of training."""
        return self.dictionary.training and self.dictionary.elastic.requires_grad

    @property
    def _grows(self) -> bool:
        return self.trains and self.config.grow

    def _set_up_probe(self) -> Tensor:
        like = self.dictionary.elastic
        if self.probe is None or (self.probe.device, self.probe.dtype) != (like.device, like.dtype):
            self.probe = like.new_zeros(self.dictionary.width, requires_grad=True)
        return self.probe

    def _make_maps(self, width: int, output_width: int, dtype: torch.dtype) -> Maps:
        # Rounded to the input's precision before anything is computed from them: the norms then hold exactly.
        atoms, projection = self.dictionary.atoms().to(dtype), self.router.projection
        count = len(atoms)
        if self._grows:
            atoms = torch.cat([atoms, self._set_up_probe()[None].to(dtype)])
        inward = torch.cat([projection[:, :width].to(dtype), atoms[:, :width]])
        gram_in = gram(atoms[:count, :width])
        if width == output_width:  # one copy in memory: a decoded token finds it in no cache
            return Maps(inward, inward[len(projection) :], gram_in, gram_in)
        return Maps(inward, atoms[:, :output_width], gram_in, gram(atoms[:count, :output_width]))

    def routes(self, code: Tensor, in_use: Tensor) -> Routes:
        """How tokens of tasks with these codes are routed, out of the atoms in use."""
        head = self.router.task_head(code)
        open_rows = pad(in_use, (0, len(in_use) + 1), value=True)
        bias = head[..., -1].masked_fill(~open_rows, MASKED)
        head = head[..., :-1].masked_fill(~open_rows[:, None], 0)
        leaves = None if self.tree is None else self.tree.as_leaves()
        return Routes(head, bias if head.dim() == 2 else bias[:, None], leaves)

    # One layer -------------------------------------------------------------------------------------------------

    def __call__(
        self, hidden_states: Tensor, output_width: int, code: Tensor, in_use: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The update of a layer, outside of automatic mixed precision.

        Args:
            hidden_states: Its inputs, ``(..., n)``.
            output_width: Width ``m`` of its outputs.
            code: As for `begin_pass`.
            in_use: As for `begin_pass`.

        Returns:
            The update ``(..., m)``; and in training the largest norm that it has for a token.
        """
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
        coefficients, gain = self.route(latents, self._routes or self.routes(code, in_use))
        if self.config.placement == "weights":  # they act on their input as it is, the skip path on the normalised one
            projections = projected[..., latent:]
        if self.config.norm_target == "residual":
            gain = gain / self.dictionary.width**0.5
        unit_in = self._unit_coefficients(coefficients, maps.gram_in)
        unit_out = unit_in if maps.gram_out is maps.gram_in else self._unit_coefficients(coefficients, maps.gram_out)
        norm = self._largest_norm(gain, unit_in, unit_out, maps) if self.dictionary.training else None
        return rank_one_update(projections, gain, unit_in, unit_out, maps.atoms_out), norm

    def _unit_coefficients(self, coefficients: Tensor, gram: Tensor) -> Tensor:
        """Those of r, the probe's among them while there is one."""
        unit = unit_coefficients(coefficients, gram)
        return pad(unit, (0, 1), value=1.0) if self._grows else unit

    def route(self, projected: Tensor, routes: Routes) -> tuple[Tensor, Tensor]:
        r"""Which atoms serve tokens whose normalised input has the projections :math:`P \hat x` ``(..., p)``.

        Returns:
            Coefficients :math:`u` ``(..., k)``, at most `expected_active_atoms` not 0, and the gain ``(..., 1)``.
        """
        most, atoms = self.config.expected_active_atoms, routes.head.shape[-2] // 2
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
        if not self.dictionary.training:
            temperature = self.config.temperature_init * FINAL_TEMPERATURE_SHARE
            return final_gates(logits, most, temperature) * coefficients, gain
        # One draw per atom and layer, for all tokens: it is the same however a batch is spread over processes.
        uniform = torch.rand(atoms, device=logits.device).clamp_(1e-6, 1 - 1e-6)
        gates, expected = relaxed_gates(logits, torch.logit(uniform), most, self.temperature)
        self.statistics.add(pad(latents, (0, 1), value=1.0), gates, expected, self._tokens)
        return gates * coefficients, gain

    @torch.no_grad()
    def _largest_norm(self, gain: Tensor, unit_in: Tensor, unit_out: Tensor, maps: Maps) -> Tensor:
        """The norm of the strongest token's update, measured on its dense vectors."""
        gain, strongest = gain.abs().flatten().max(0, keepdim=True)

        def length(unit: Tensor, atoms: Tensor) -> Tensor:  # by `index_select`, for which a GPU does not wait
            return (unit.reshape(-1, unit.shape[-1]).index_select(0, strongest).double() @ atoms.double()).norm()

        length_in = length(unit_in, maps.inward[len(self.router.projection) :])
        length_out = length_in if unit_out is unit_in else length(unit_out, maps.atoms_out)
        return (gain * length_in * length_out)[0]


def unit_coefficients(coefficients: Tensor, gram: Tensor) -> Tensor:
    r"""Coefficients of the unit vector :math:`D^\top u / \lVert D^\top u\rVert`: :math:`u / \sqrt{u^\top G u}`.

    Args:
        coefficients: :math:`u`, shape ``(..., k)``; all zero stays zero.
        gram: :math:`G = D D^\top`, ``(k, k)``.
    """
    squared = (coefficients @ gram * coefficients).sum(-1, keepdim=True)
    return coefficients / squared.clamp_min(torch.finfo(coefficients.dtype).tiny).sqrt()


def rank_one_update(projections: Tensor, gain: Tensor, unit_in: Tensor, unit_out: Tensor, atoms_out: Tensor) -> Tensor:
    r"""Apply the self-normalising update :math:`\gamma\, r_m r_n^\top x` without forming :math:`r` (section 2).

    With :math:`r_n = D_n^\top w_n` and :math:`r_m = D_m^\top w_m` of norm 1 (`unit_coefficients`) the result is
    :math:`\gamma\,(w_n \cdot D_n x)\, D_m^\top w_m`, hence :math:`\lVert\Delta W\rVert = |\gamma|`.

    Args:
        projections: :math:`D_n x`, shape ``(..., k)``.
        gain: :math:`\gamma`, shape ``(..., 1)``.
        unit_in: :math:`w_n`, shape ``(..., k)``.
        unit_out: :math:`w_m`, shape ``(..., k)``.
        atoms_out: :math:`D_m`, shape ``(k, m)``.

    Returns:
        The update of the layer's output, ``(..., m)``, in the precision of ``atoms_out``.
    """
    scale = gain * (unit_in * projections).sum(-1, keepdim=True)
    return (scale * unit_out).to(atoms_out.dtype) @ atoms_out


def gram(atoms: Tensor) -> Tensor:
    """Gram matrix ``(k, k)`` of atoms ``(k, d)``, accumulated in at least 32 bits."""
    wide = atoms.to(torch.promote_types(atoms.dtype, torch.float32))
    return wide @ wide.T
