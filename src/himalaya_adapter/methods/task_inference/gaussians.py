"""Which task is a prompt from, if from any? A Gaussian for each learnt task (docs/method.md)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.linalg import cholesky, eigh, inv, solve_triangular
from torch.nn.functional import normalize, pad

from himalaya_adapter.methods.kept import Kept, full_precision
from himalaya_adapter.methods.packed_rows import RowFormat

from .prompt_memory import DECAY, PromptMemory

POOLS = 2  # of a prompt: over all of its tokens, and around its end
FEATURES = 120  # random projections of a pooled prompt
DIRECTIONS = 16  # of a task's largest spread; what lies outside of them is taken to be spread alike everywhere
MEAN, SPREAD = RowFormat(FEATURES, bits=8), RowFormat(FEATURES, bits=2)
# A task's own spread counts as if so many more of its prompts had been seen, spread alike in all directions.
PRIOR_PROMPTS = 5
# More prompts add little.
ENOUGH = 128
# Added to every variance, in units of the mean variance within tasks.
RIDGE = 1.0
# Added to a task's variances, which are about 1e-4, should all of its prompts be the same.
SMALLEST = 1e-6
# The background's spread counts as if one more task were so many variances away in all directions.
PRIOR_TASK = 1.0
# A prompt is unknown if it is farther away than learnt tasks' prompts are on average by more than this share of what
# they are away from the background: `LIMIT` (1 + `FEW` / (n + 20)) for a task that n prompts were seen of, as a spread
# seen in few prompts looks smaller than it is. Chosen on validation items, so that 95 % of the learnt tasks' own
# prompts lie nearer (benchmarks/unknown_prompts.py).
LIMIT, FEW = 0.36, 86.0


class Gaussians(NamedTuple):
    """What prompts are compared with: the learnt tasks, and all of them together, the background."""

    rows: Tensor  # of the table of tasks, (t,)
    means: Tensor  # (t, q)
    variances: Tensor  # outside of the directions, with the ridge, (t,)
    directions: Tensor  # (t, k, q); what they explain of a squared gap is taken away from it
    centre: Tensor  # of the background, (q,)
    precision: Tensor  # of the background, (q, q)
    expected: Tensor  # the mean distance of a learnt task's prompts, ()
    allowed: Tensor  # how much larger it may be, (t,)


class GaussianMemory(PromptMemory):
    """Regularised discriminant analysis (Friedman 1989) of prompts.

    The features are random projections of the hidden states that the frozen model has in its middle. A prompt belongs
    to the task by whose Gaussian it is nearest. How near it is, is measured relative to the Gaussian of all learnt
    tasks together (Ren et al. 2021, arXiv:2106.09022). Each task has a row of its own: what is known of one does not
    depend on the others. It is kept in few bits.

    Args:
        width: Width ``d`` of the hidden states.
        rows: Most tasks.
    """

    def __init__(self, width: int, rows: int) -> None:
        super().__init__(FEATURES, enough=ENOUGH)
        generator = torch.Generator().manual_seed(0)
        # Random signs: integers are the same on every machine, and no cast of the model touches them.
        signs = torch.randint(0, 2, (FEATURES, POOLS * width), generator=generator, dtype=torch.int8) * 2 - 1
        self.signs: Tensor = nn.Buffer(signs, persistent=False)
        self.means: Tensor = nn.Buffer(torch.zeros(rows, MEAN.row_bytes, dtype=torch.uint8))
        self.spreads: Tensor = nn.Buffer(torch.zeros(rows, DIRECTIONS + 1, SPREAD.row_bytes, dtype=torch.uint8))
        self.counts: Tensor = nn.Buffer(torch.zeros(rows, dtype=torch.uint8))  # of prompts, up to 255
        self._gaussians: Kept[Gaussians] = Kept()

    @torch.no_grad()
    def features(self, states: Tensor, mask: Tensor) -> Tensor:
        """As in every `PromptMemory`, each of norm about 0.7; the states are those of `frozen.middle_states`."""
        on = mask.float()
        from_end = on.sum(1, keepdim=True) - on.cumsum(1)
        weights = torch.stack([on, on * DECAY**from_end], dim=1)
        with full_precision(states):
            pooled = normalize(weights @ normalize(states.float(), dim=-1), dim=-1)
            return pooled.flatten(1) @ self.signs.float().T / (POOLS * FEATURES**0.5)

    @torch.no_grad()
    def learn(self, row: int) -> None:
        """Close the task of a row with what was observed since the last call; nothing seen, nothing done.

        A task that is learnt further keeps what was known of its prompts.
        """
        if self.task_moment[-1, -1] == 0:
            return
        moment = self.task_moment.double() + self._moment(row)
        count = moment[-1, -1]
        mean = moment[-1, :-1] / count
        spread = moment[:-1, :-1] - count * torch.outer(mean, mean)
        prior = PRIOR_PROMPTS * spread.trace() / count / FEATURES
        sizes, directions = eigh((spread + prior * torch.eye(FEATURES).to(spread)) / (count + PRIOR_PROMPTS))
        sizes = sizes.clamp_min(0)  # rounding can make them negative
        rest = sizes[:-DIRECTIONS].sum() / FEATURES
        largest = (directions * sizes.sqrt()).T[-DIRECTIONS:]
        self.means[row] = MEAN.pack(mean[None].float())[0]
        self.spreads[row] = SPREAD.pack(torch.cat([largest, rest.sqrt().expand(1, FEATURES)]).float())
        self.counts[row] = count.clamp_max(255).to(torch.uint8)
        self.task_moment.zero_()

    def _moment(self, row: int) -> Tensor:
        """What `learn` would have seen of a row's task, as far as it was kept: zero if it is new."""
        count, mean = self.counts[row].double(), MEAN.unpack(self.means[row][None]).double()
        spread = SPREAD.unpack(self.spreads[row]).double()
        one = torch.eye(FEATURES).to(spread)
        covariance = spread[:-1].T @ spread[:-1] + spread[-1, 0].square() * one
        # Without the prior, which is added again.
        within = (count + PRIOR_PROMPTS) * covariance - PRIOR_PROMPTS * covariance.trace() / FEATURES * one
        seen = torch.cat([mean, torch.ones_like(mean[:, :1])], dim=1)
        return count.sign() * pad(within, (0, 1, 0, 1)) + count * seen.T @ seen

    @torch.no_grad()
    def remove(self, row: int) -> None:
        """Forget the task of a row."""
        for buffer in (self.means, self.spreads, self.counts):
            buffer[row] = 0

    def recognise(self, states: Tensor, mask: Tensor) -> list[tuple[int | None, float]]:
        """The row of the task that each prompt looks like, and a confidence: below 1 it looks like none, ``None``."""
        rows, confidences = self.infer(self.features(states, mask))
        found = zip(rows.tolist(), confidences.where(mask.any(1), 0.0).tolist(), strict=True)
        return [(row if confidence == 1 else None, confidence) for row, confidence in found]

    @torch.no_grad()
    def infer(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The tasks that prompts are from.

        Args:
            features: ``(b, q)``.

        Returns:
            Rows ``(b,)`` and confidences ``(b,)``: 1, or below it for a prompt that looks like no task. Without a
            task both are 0.
        """
        if not self.counts.any():
            nothing = features.new_zeros(len(features))
            return nothing.long(), nothing
        known = self._gaussians.get(self._fit, self.means, self.spreads, self.counts)
        with full_precision(features):
            gaps = features.float()[:, None] - known.means
            explained = torch.einsum("tkq,btq->btk", known.directions, gaps).square().sum(-1)
            distance, nearest = ((gaps.square().sum(-1) - explained) / known.variances / FEATURES).min(1)
            gap, allowed = features.float() - known.centre, known.allowed[nearest]
            excess = distance - ((gap @ known.precision) * gap).mean(1) - known.expected
        return known.rows[nearest], allowed / excess.maximum(allowed)

    def _fit(self) -> Gaussians:
        """The Gaussians of the tasks in memory, and of all together."""
        rows = self.counts.nonzero().flatten()
        means = MEAN.unpack(self.means[rows])
        spreads = SPREAD.unpack(self.spreads[rows].flatten(0, 1)).view(len(rows), DIRECTIONS + 1, FEATURES)
        directions, rest = spreads[:, :-1], spreads[:, -1, 0].square() + SMALLEST
        one = torch.eye(FEATURES, device=means.device)
        within = (directions.mT @ directions).mean(0) + rest.mean() * one
        variance = within.trace() / FEATURES
        # By the Woodbury identity: the inverse of F^T F + s 1 is (1 - G^T G) / s.
        variances = rest + RIDGE * variance
        inner = directions @ directions.mT + variances[:, None, None] * torch.eye(DIRECTIONS).to(means)
        directions = solve_triangular(cholesky(inner), directions, upper=False)
        centre = means.mean(0)
        total = within + (means - centre).T @ (means - centre) / len(rows) + RIDGE * variance * one
        precision = inv(total + PRIOR_TASK / len(rows) * variance * one)
        # Mean distances of the learnt tasks' own prompts: to their tasks, and to the background.
        near = 1 - RIDGE * variance * (1 - directions.square().sum((1, 2)) / FEATURES) / variances
        far = 1 - (RIDGE + PRIOR_TASK / len(rows)) * variance * precision.trace() / FEATURES
        # How far from the background they would be if nothing were known of further tasks.
        alone = 1 - RIDGE * variance * inv(total).trace() / FEATURES
        allowed = LIMIT * alone * (1 + FEW / (self.counts[rows] + 20.0))
        return Gaussians(rows, means, variances, directions, centre, precision, near.mean() - far, allowed)
