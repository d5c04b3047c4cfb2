"""Training items as tokens, in batches whose answers end at the same column: logits are computed for them only."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import Batch, left_padded
from himalaya_adapter.streams import Task
from himalaya_adapter.streams.encoding import IGNORED_LABEL, TargetTooLong, encode_item

logger = logging.getLogger(__name__)
# The seeds of a run's tasks are neighbours, so those of a task's epochs lie far apart.
EPOCH_STRIDE = 1_000_003


class EncodedItems(Dataset[dict[str, list[int]]]):
    """What ``encode_item`` returns for each training item of some tasks; no tokens are kept, whatever their number.

    Args:
        tokenizer: The backbone's.
        tasks: Whose training items; all of them fit (`fitting`).
        max_length: The most tokens of an item.
    """

    def __init__(self, tokenizer: Any, tasks: Sequence[Task], max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.items = [item for task in tasks for item in task.train]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return encode_item(self.tokenizer, self.items[index], self.max_length)

    def first(self, count: int) -> list[dict[str, list[int]]]:
        """The first examples, no more than ``count``."""
        return [self[index] for index in range(min(count, len(self)))]


def fitting(tokenizer: Any, task: Task, max_length: int) -> Task:
    """The task with those of its training items whose targets fit into ``max_length`` tokens.

    Raises:
        HimalayaError: One does not, and the task's ``on_bad_item`` is ``stop``; or none does.
    """
    items = []
    for item in task.train:
        try:
            encode_item(tokenizer, item, max_length)
        except TargetTooLong as error:
            if task.spec.on_bad_item == "stop":
                raise HimalayaError(f"task '{task.name}': {error}; on_bad_item: skip leaves such items out") from error
        else:
            items.append(item)
    if not items:
        raise HimalayaError(f"task '{task.name}': no target has less than {max_length} tokens")
    if len(items) < len(task.train):
        logger.warning("task %s: %d items skipped, target too long", task.name, len(task.train) - len(items))
    return replace(task, train=tuple(items))


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
        ids, mask, labels = (
            left_padded([example[key] for example in examples], filler)
            for key, filler in (("input_ids", self.padding), ("attention_mask", 0), ("labels", IGNORED_LABEL))
        )
        answer = int((labels != IGNORED_LABEL).sum(dim=1).max())
        return Batch([], ids, mask).inputs | {"labels": labels[:, -answer - 1 :]}


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
    """A Trainer whose loss looks at the answers' logits only: the prompt's, over a large vocabulary, cost a fifth.

    Args:
        penalties: What is added to the loss of an optimiser step, once, however many batches and processes make it
            up: functions of the parameters alone that return scalars. The losses that are logged hold them.
        arguments: Those of the Trainer.
    """

    def __init__(self, *, penalties: Sequence[Callable[[], Tensor]] = (), **arguments: Any) -> None:
        super().__init__(**arguments)
        self.penalties = penalties

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedOrder:
        examples: Any = train_dataset or self.train_dataset
        lengths = [len(example["input_ids"]) for example in examples]
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
        loss, outputs = answer_loss(model, inputs, "mean" if num_items_in_batch is None else "sum")
        if num_items_in_batch is not None:
            loss = loss / num_items_in_batch * self.accelerator.num_processes  # gradients are averaged over those
        if not loss.isfinite():
            loss = loss * torch.nan
        for penalty in self.penalties:
            # Processes average their gradients, and each has the same penalty; a mean the Trainer divides by itself.
            batches = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + penalty() / batches
        return (loss, outputs) if return_outputs else loss


def answer_log_likelihoods(
    model: Any, collator: AnswerCollator, examples: Iterable[Mapping[str, list[int]]]
) -> Iterator[Tensor]:
    """log p(answer | prompt) of each example, computed one by one as they are asked for.

    Args:
        model: A causal language model.
        collator: Makes inputs of an example.
        examples: What ``encode_item`` returns.
    """
    for example in examples:
        inputs = {key: value.to(model.device) for key, value in collator([example]).items()}
        yield -answer_loss(model, inputs, "sum")[0]


def answer_loss(model: Any, inputs: dict[str, Tensor], reduction: str) -> tuple[Tensor, Any]:
    """Cross-entropy of a batch's answer tokens, and the model's outputs.

    Args:
        model: A causal language model.
        inputs: What `AnswerCollator` returns.
        reduction: ``mean`` or ``sum`` over the tokens; the sum of one example is its −log p(answer | prompt).
    """
    labels = inputs["labels"][:, 1:]
    rest = {key: value for key, value in inputs.items() if key != "labels"}
    outputs = model(**rest, logits_to_keep=labels.shape[1] + 1, use_cache=False)
    logits = outputs.logits[:, :-1].float().flatten(0, 1)
    return cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction), outputs
