"""The hyper-router: which atoms a token uses, with which coefficients and gain (docs/method-strict.md, section 3)."""

import hashlib
import math

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

# The relaxation ends close to hard gates, so that training's last steps see what inference sees.
FINAL_TEMPERATURE_SHARE = 0.1
NEWTON_STEPS = 5
SMALLEST_EXCESS = 5e-6  # of expected open gates over the budget: the search for the shift may end there
HEAD_INIT_STD = 0.2
# Gate logits at the start of a task: its own atoms almost always on, those of others, if its own fill all places, so
# seldom that a hundred of them do not crowd out its own, atoms that nobody uses never.
OWN_GATE, OTHERS_GATE, UNUSED_GATE = 8.0, -4.0, -20.0


def task_code(name: str, width: int) -> Tensor:
    r"""The unit code ``(e,)`` of a task: signs :math:`\pm 1/\sqrt e` drawn from a hash of its name.

    It is the same on every machine. The first entry is always positive: one functional is then 1 for every task.
    """
    signs = torch.randint(0, 2, (width,), generator=_generator(name)) * 2 - 1
    signs[0] = 1
    return signs / width**0.5


def _generator(text: str) -> torch.Generator:
    """A random generator seeded by a hash of ``text`` that is the same everywhere."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


def latent_width(width: int, atoms: int, code_width: int, hidden_params: int) -> int:
    """The largest latent width ``p`` with ``d p + (2k + 1)(p + 1) e <= hidden_params``.

    Raises:
        ValueError: If not even ``p = 1`` fits.
    """
    outputs = (2 * atoms + 1) * code_width
    latent = (hidden_params - outputs) // (width + outputs)
    if latent < 1:
        smallest = width + 2 * outputs
        raise ValueError(f"hidden_params={hidden_params} is too small for width {width}: at least {smallest} needed")
    return min(latent, width)


@torch.no_grad()
def budget_shift(logits: Tensor, budget: float, temperature: float) -> Tensor:
    r"""The smallest :math:`\tau_0 \ge 0` with :math:`\sum_i \sigma((a_i - \tau_0)/T) \le` ``budget``.

    Safeguarded Newton steps inside a bracket; the right end starts from
    :math:`\sigma(x) \le e^x`, that is :math:`T(\mathrm{logsumexp}(a/T) - \log B)`.

    Args:
        logits: Gate logits ``a``, shape ``(..., k)``.
        budget: ``B``, the expected number of active atoms.
        temperature: ``T``.

    Returns:
        The shift, shape ``(..., 1)``. The budget holds to about 1e-5 in 32 bits.
    """
    scaled = logits / temperature
    count = scaled.shape[-1]
    if budget >= count:
        return torch.zeros_like(scaled[..., :1])
    last_in, first_out = scaled.topk(int(budget) + 1, dim=-1).values[..., -2:].split(1, dim=-1)
    low = (first_out - math.log(budget)).clamp_min(0)
    high = torch.maximum(last_in, first_out + math.log(2 * count)).clamp_min(0)
    slack = torch.sigmoid(scaled).sum(-1, keepdim=True) <= budget
    # To look at values an accelerator would have to wait; a compiled or only counted model has none.
    may_stop = scaled.device.type == "cpu" and not (torch.compiler.is_compiling() or isinstance(scaled, FakeTensor))
    if may_stop and slack.all():
        return torch.zeros_like(last_in)
    shift = ((last_in + first_out) / 2).clamp(low, high)
    for _ in range(NEWTON_STEPS):
        gates = torch.sigmoid(scaled - shift)
        excess = gates.sum(-1, keepdim=True) - budget
        if may_stop and excess.abs().amax() <= SMALLEST_EXCESS:
            break
        too_many = excess > 0
        low = torch.where(too_many, shift, low)
        high = torch.where(too_many, high, shift)
        slope = (gates * (1 - gates)).sum(-1, keepdim=True).clamp_min(1e-12)
        newton = shift + excess / slope
        shift = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
    return torch.where(slack, 0.0, shift) * temperature


def hard_gates(scores: Tensor, most: int) -> Tensor:
    """Zero-one gates ``(..., k)``: the ``most`` largest scores that are positive, and in any case the largest one."""
    top = scores.topk(min(most, scores.shape[-1]), dim=-1)
    on = top.values > 0
    on[..., 0] = True
    return torch.zeros_like(scores).scatter_(-1, top.indices, on.to(scores.dtype))


def relaxed_gates(logits: Tensor, noise: Tensor, most: int, temperature: float) -> tuple[Tensor, Tensor]:
    r"""The gates of training: a sample of relaxed Bernoulli(:math:`\pi`) gates, of which at most ``most`` are open.

    Args:
        logits: Gate logits ``a``, ``(..., k)``.
        noise: Logistic noise ``(k,)``: the logit of uniform numbers.
        most: ``B``.
        temperature: ``T``.

    Returns:
        Zero-one gates ``(..., k)``, whose gradient is that of the relaxed ones (straight-through), and
        :math:`\sum_i \pi_i` ``(..., 1)``, without a gradient.
    """
    shifted = (logits - budget_shift(logits, most, temperature)) / temperature
    noisy = shifted + noise
    soft = torch.sigmoid(noisy)
    hard = hard_gates(noisy.detach(), most)
    expected = torch.sigmoid(shifted.detach()).sum(-1, keepdim=True).clamp_max(most)
    return hard + (soft - soft.detach()), expected


def final_gates(logits: Tensor, most: int, temperature: float) -> Tensor:
    r"""The gates of inference ``(..., k)``: `hard_gates` of the logits shifted by `budget_shift`, without the shift.

    The expected number of open gates :math:`f(\tau) = \sum_j \sigma((a_j - \tau)/T)` falls with :math:`\tau`, so an
    atom lies above the smallest :math:`\tau_0 \ge 0` with :math:`f(\tau_0) \le B` where :math:`a_i > 0` and
    :math:`f(a_i) < B`. Of those the :math:`B` largest are open, and in any case the largest of all.

    Args:
        logits: Gate logits ``a``, shape ``(..., k)``.
        most: ``B``.
        temperature: ``T``.
    """
    top = logits.topk(min(most, logits.shape[-1]), dim=-1)
    gates = torch.zeros_like(logits).scatter_(-1, top.indices[..., :1], 1.0)
    values, others = top.values[..., 1:], top.indices[..., 1:]
    expected = torch.sigmoid((logits[..., None, :] - values[..., None]) / temperature).sum(-1)
    on = (values > 0) & (expected < most)
    return gates.scatter_(-1, others, on.to(logits.dtype))


class HyperRouter(nn.Module):
    """Task-conditional routing out of one shared tensor.

    The head ``(2k + 1, p + 1, e)`` contracted with a task's code gives that task's own linear map from the latent
    ``[z; 1]`` to ``k`` gate logits, ``k`` coefficients and one gain.

    Args:
        atoms: Number of atoms ``k``.
        width: Width ``d`` of the hidden states.
        latent: Latent width ``p``.
        code_width: Width ``e`` of a task code.
        seed: Seed of the initial projection and head.
    """

    def __init__(self, atoms: int, width: int, latent: int, code_width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(latent, width, generator=generator)
        self.projection = nn.Buffer(nn.functional.normalize(projection, dim=-1))
        self.offset = nn.Buffer(torch.zeros(latent))
        self.head = nn.Parameter(torch.zeros(2 * atoms + 1, latent + 1, code_width))

    def task_head(self, code: Tensor) -> Tensor:
        """The linear head ``(2k + 1, p + 1)`` of the task with code ``(e,)``, or one per row for codes ``(b, e)``."""
        return torch.einsum("...e,ole->...ol", code, self.head)

    def fresh_head(self, name: str, serving: Tensor, in_use: Tensor, most: int) -> Tensor:
        """The head ``(2k + 1, p + 1)`` that task ``name`` starts from.

        The atoms that serve it are gated on for every token, with coefficient 1; what else earlier tasks use can be
        chosen, with coefficient 0; the rest can never be. The gain is 0, so that the task starts as the frozen model.

        Args:
            name: The task's name, which seeds the small random part.
            serving: Mask of the atoms allocated to the task, or borrowed by it, ``(k,)``.
            in_use: Mask of all atoms that hold something, ``(k,)``.
            most: How many atoms may be active. As long as those that serve are fewer, others have an even chance.
        """
        noise = torch.randn(self.head.shape[:2], generator=_generator(f"head of {name}")) * HEAD_INIT_STD
        gates, coefficients, gain = noise.to(self.head.device).split([len(serving), len(serving), 1])
        others = OTHERS_GATE if serving.sum() >= most else 0.0
        bias = torch.where(serving, OWN_GATE, torch.where(in_use, others, UNUSED_GATE))
        constant = torch.eye(self.head.shape[1], device=self.head.device)[-1]  # picks the 1 of [z; 1]
        gates = gates * in_use[:, None] + bias[:, None] * constant
        coefficients = (coefficients + constant) * serving[:, None]
        return torch.cat([gates, coefficients, torch.zeros_like(gain)])

    def keys(self, vectors: Tensor) -> Tensor:
        """Keys ``(n, p)`` of unit vectors ``(n, d)`` in the tree: their latent coordinates at a token's length."""
        return vectors @ self.projection.T * self.projection.shape[1] ** 0.5

    @torch.no_grad()
    def fit_projection(self, inputs: Tensor) -> None:
        """Set ``P`` to the leading principal directions of normalised inputs ``(n, d)``, scaled to unit variance."""
        latent = self.projection.shape[0]
        inputs = inputs.to(self.projection.dtype)
        mean = inputs.mean(0)
        _, singular, directions = torch.linalg.svd(inputs - mean, full_matrices=False)
        found = min(latent, len(singular))
        deviation = (singular[:found] / len(inputs) ** 0.5).clamp_min(1e-6)
        # An SVD leaves the sign of a direction open; fix it, so that every machine gets the same P.
        signs = directions[:found].gather(1, directions[:found].abs().argmax(1, keepdim=True)).sign()
        self.projection[:found] = directions[:found] * signs / deviation[:, None]
        self.offset.copy_(self.projection @ mean)
