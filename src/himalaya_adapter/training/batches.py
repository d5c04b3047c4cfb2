"""Batches whose answers end at the same column, so that logits are computed for the answers only."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from himalaya_adapter.streams.encoding import IGNORED_LABEL

# The seeds of a run's tasks are neighbours, so those of a task's epochs lie far apart.
EPOCH_STRIDE = 1_000_003


class AnswerCollator:
    """Pads on the left; ``labels`` keep only the last columns: the longest answer of the batch, and one before it.

    That one is never to be predicted. It is there for the Trainer, which counts the answer tokens of a step from the
    second column on, as a model shifts its labels.

    Args:
        padding: Token id of the padding.
    """

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, examples: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """Collate what ``encode_item`` returns: ids, mask and positions ``(b, s)``, labels ``(b, a + 1)``."""
        length = max(len(example["input_ids"]) for example in examples)
        answer = max(sum(label != IGNORED_LABEL for label in example["labels"]) for example in examples)

        def padded(key: str, filler: int) -> Tensor:
            return torch.tensor([[filler] * (length - len(one[key])) + list(one[key]) for one in examples])

        mask = padded("attention_mask", 0)
        return {
            "input_ids": padded("input_ids", self.padding),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp_min(0),
            "labels": padded("labels", IGNORED_LABEL)[:, -answer - 1 :],
        }


class LengthGroupedOrder(LengthGroupedSampler):
    """An order that only the seed and the epoch decide.

    transformers' own draws from torch's global generator, which a method that samples in training advances; a task
    resumed in its second epoch would then see another order than an uninterrupted one.

    Args:
        batch_size: Examples per optimiser step; neighbours in the order are of similar length.
        lengths: Tokens of each example.
        seed: Seed of the task.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + EPOCH_STRIDE * self.epoch)
        return super().__iter__()


class AnswerTrainer(Trainer):
    """A Trainer whose loss looks at the answers' logits only: the prompt's, over a large vocabulary, cost a fifth."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedOrder:
        examples: Any = train_dataset or self.train_dataset
        lengths = [len(tokens) for tokens in examples["input_ids"]]
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedOrder(batch_size, lengths, self.args.seed)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean cross-entropy of the answer tokens, over all batches of all processes that make up one optimiser step.

        A loss that is not finite has no finite gradient, whatever the parameters' derivatives are: that is seen on
        every process.
        """
        labels = inputs.pop("labels")[:, 1:]
        outputs = model(**inputs, logits_to_keep=labels.shape[1] + 1, use_cache=False)
        logits = outputs.logits[:, :-1].float().flatten(0, 1)
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction)
        if num_items_in_batch is not None:
            loss = loss / num_items_in_batch * self.accelerator.num_processes  # gradients are averaged over those
        if hasattr(self.model, "penalty"):  # every process has the same, and it counts once for a step
            loss = loss + self.model.penalty() / self.current_gradient_accumulation_steps
        if not loss.isfinite():
            loss = loss * torch.nan
        return (loss, outputs) if return_outputs else loss
