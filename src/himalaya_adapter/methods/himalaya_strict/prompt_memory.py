"""Which task is a prompt from? Means of prompt features and their common spread (docs/method-strict.md, section 3)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from himalaya_adapter.methods.task_inference.prompt_memory import DECAY, PromptMemory

POOLS = 3  # of a prompt: over all of its tokens, around its beginning, around its end
# Added to the variance of every feature; a random projection of a pooled prompt has a second moment of about 1.
RIDGE = 0.1
# A task's spread counts as if so many more of its prompts had been seen, with this variance of every feature: then
# distances mean the same after five prompts and after hundreds.
PRIOR_PROMPTS, PRIOR_VARIANCE = 3, 0.3
# A prompt farther from every task than this looks like none of them. Chosen on validation items, so that 95 % of the
# learnt tasks' own prompts lie nearer.
TYPICAL = 0.9


class DiscriminantMemory(PromptMemory):
    r"""Linear discriminant analysis of pooled prompt features (Fisher 1936), in a memory of fixed size.

    A prompt belongs to the task with the nearest mean in the metric of the covariance within tasks. The features come
    from the input embeddings. Tasks only add to a sum and fill slots, so their order does not matter. Each task weighs
    the same, whatever its number of prompts. Tasks are kept as the signs of their codes, without names.

    Args:
        width: Width ``d`` of the input embeddings.
        code_width: Width ``e`` of a task code; its entries are :math:`\pm 1/\sqrt e`.
        projections: Random projections of each of the three pooled vectors: ``q = 3 projections`` features.
        slots: How many tasks can be told apart; one more takes the place of the oldest.
    """

    def __init__(self, width: int, code_width: int, projections: int = 18, slots: int = 64) -> None:
        super().__init__(POOLS * projections)
        generator = torch.Generator().manual_seed(0)
        # Random signs: integers are the same on every machine, and exact in every precision.
        signs = torch.randint(0, 2, (POOLS, projections, width), generator=generator) * 2.0 - 1.0
        self.signs: Tensor = nn.Buffer(signs, persistent=False)
        features = POOLS * projections + 1
        self.covariance: Tensor = nn.Buffer(torch.zeros(features, features))  # summed over the tasks
        self.means: Tensor = nn.Buffer(torch.zeros(slots, features))
        self.codes: Tensor = nn.Buffer(torch.zeros(slots, code_width, dtype=torch.bool))  # where a code is positive
        self.tasks: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))  # different codes seen
        self.closed: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))  # terms of the covariance's sum

    @torch.no_grad()
    def features(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """As in every `PromptMemory`; the states are the input embeddings."""
        on = mask.float()[:, None]
        from_start = on.cumsum(-1) - 1
        from_end = on.sum(-1, keepdim=True) - 1 - from_start
        distances = torch.cat([torch.zeros_like(on), from_start, from_end], dim=1)
        weights = on * DECAY ** distances.clamp_min(0)
        with torch.autocast(embeddings.device.type, enabled=False):
            pooled = normalize(weights @ normalize(embeddings.float(), dim=-1), dim=-1)
            return torch.einsum("bpd,pnd->bpn", pooled, self.signs.float()).flatten(1)

    @torch.no_grad()
    def learn(self, code: Tensor) -> None:
        """Close the task: bind what was observed since the last call to its code ``(e,)``; nothing seen, nothing done.

        A task that is learnt again keeps its slot and gets its new mean.
        """
        count = self.task_moment[-1, -1]
        if count == 0:
            return
        mean = self.task_moment[-1] / count  # the constant feature's row is the sum of the features
        within = self.task_moment - count * torch.outer(mean, mean)
        prior = PRIOR_PROMPTS * PRIOR_VARIANCE * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        self.covariance += (within + prior) / (count + PRIOR_PROMPTS)
        positive = code > 0
        same = (self.codes[: self.tasks] == positive).all(1).nonzero().flatten().tolist()
        slot = same[0] if same else int(self.tasks) % len(self.codes)
        self.means[slot], self.codes[slot] = mean, positive
        self.tasks += 1 - len(same)
        self.closed += 1
        self.task_moment.zero_()

    def known_codes(self) -> Tensor:
        """Codes ``(t, e)`` of the tasks that have a slot."""
        slots, width = self.codes.shape
        return (self.codes[: min(int(self.tasks), slots)].float() * 2 - 1) / width**0.5

    @torch.no_grad()
    def infer(self, features: Tensor) -> tuple[Tensor, Tensor]:
        r"""The codes of the tasks that prompts come from.

        Returns:
            Codes ``(B, e)`` and confidences :math:`\min(1, 0.9\, q / m)` ``(B,)``, ``m`` being the squared
            Mahalanobis distance to the task's mean: below 1 the prompt looks like no task. All are 0 as long as no
            task has been learnt.
        """
        known = self.known_codes().to(features.dtype)
        if len(known) == 0:
            return features.new_zeros(len(features), known.shape[1]), features.new_zeros(len(features))
        variances, directions = torch.linalg.eigh(self.covariance.double() / self.closed)
        whitening = directions / (variances.clamp_min(0) + RIDGE).sqrt()  # clamped: rounding can make them negative
        gaps = pad(features, (0, 1), value=1.0).double()[:, None] - self.means[: len(known)].double()
        distance, nearest = (gaps @ whitening).square().mean(-1).min(dim=1)
        return known[nearest], (TYPICAL / distance.clamp_min(TYPICAL)).to(features.dtype)
