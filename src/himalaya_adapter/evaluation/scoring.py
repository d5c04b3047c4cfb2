"""The score of one task: predictions for a split, their metric, and how sure the number is."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import context_of, prompt_batches, reading
from himalaya_adapter.evaluation.generation import answer_text, generate_texts, stop_tokens
from himalaya_adapter.evaluation.intervals import bootstrap_weights, percentile_interval
from himalaya_adapter.evaluation.labels import choose_labels
from himalaya_adapter.evaluation.text_metrics import accuracy, metric_by_name
from himalaya_adapter.streams.encoding import encode_target
from himalaya_adapter.streams.task import Task

# One seed for every cell: the intervals of two rows of a matrix then rest on the same resamples of the same items.
BOOTSTRAP_SEED = 0
ANSWERS_KEPT = 3  # of a split's first items, to be shown


@dataclass(frozen=True)
class TaskScore:
    """How well a model does a task.

    Args:
        score: The task's metric over the split, in [0, 1].
        low: Lower end of its 95 % bootstrap interval over the items.
        high: Upper end.
        n: Number of items.
        metric: Name of the metric.
        strict: Share of items whose generated text is the target exactly, outer white space aside.
        item_scores: The metric of each item, in the order of the split.
        answers: What the first items were answered.
        seconds: Wall-clock time of the evaluation.
    """

    score: float
    low: float
    high: float
    n: int
    metric: str
    strict: float
    item_scores: tuple[float, ...]
    answers: tuple[str, ...]
    seconds: float


def evaluate_task(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    split: str = "test",
    batch_size: int,
    max_length: int,
    progress: Callable[[int, int], None] | None = None,
) -> TaskScore:
    """Score a model on a split of a task.

    A classification chooses the likeliest label string (see ``labels.choose_labels``); every other kind is generated
    greedily. An answer ends at EOS; if no training target of the task spans lines, also at the end of the line.
    Predictions do not depend on the batch size, up to floating-point rounding.

    Args:
        model: A causal language model, bare or wrapped by PEFT; its mode is the same before and after.
        tokenizer: Its tokenizer.
        task: The task.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        batch_size: Prompts per batch.
        max_length: The most tokens of a prompt; longer ones lose their beginning. The answer comes on top,
            so that both together are no more than the model reads.
        progress: Called with the items done and the number of items, after each batch.

    Raises:
        HimalayaError: The split is empty, or the metric is unknown.
    """
    started = time.perf_counter()
    spec, items = task.spec, task.split(split)
    metric = metric_by_name(spec.metric)
    if not items:
        raise HimalayaError(f"task '{task.name}' has no items in its {split} split; nothing to evaluate")
    targets = [item.target for item in items]
    newline_ends = task.answers_are_lines
    stop = stop_tokens(tokenizer, newline_ends)
    # One that holds text before its line break would write more than the label.
    ends = [token for token in sorted(stop) if not answer_text(tokenizer, [token], stop, newline_ends)]
    # Without the EOS that encode_target adds.
    labels = [encode_target(tokenizer, label, chat=items[0].chat)[:-1] for label in spec.labels]
    longest = max(map(len, labels), default=spec.max_new_tokens)
    max_length = max(1, min(max_length, context_of(model) - longest))
    predictions, written = [""] * len(items), [""] * len(items)
    done = 0
    with reading(model):
        for batch in prompt_batches(tokenizer, items, max_length, model.device, batch_size):
            if spec.kind == "classification":
                choices = choose_labels(model, batch, labels, ends)
                answers = [
                    (spec.labels[label], "" if writes is None else spec.labels[writes]) for label, writes in choices
                ]
            else:
                texts = generate_texts(
                    model, tokenizer, batch, max_new_tokens=spec.max_new_tokens, newline_ends=newline_ends
                )
                answers = list(zip(texts, texts, strict=True))
            for index, answer in zip(batch.indices, answers, strict=True):
                predictions[index], written[index] = answer
            done += len(answers)
            if progress is not None:
                progress(done, len(items))
    score = float(metric.corpus_scores(predictions, targets, np.ones((1, len(items))))[0])
    weights = bootstrap_weights(len(items), np.random.default_rng(BOOTSTRAP_SEED))
    low, high = percentile_interval(metric.corpus_scores(predictions, targets, weights), score)
    return TaskScore(
        score=score,
        low=low,
        high=high,
        n=len(items),
        metric=spec.metric,
        strict=float(np.mean([accuracy(text, target) for text, target in zip(written, targets, strict=True)])),
        item_scores=tuple(metric.item_scores(predictions, targets).tolist()),
        answers=tuple(predictions[:ANSWERS_KEPT]),
        seconds=time.perf_counter() - started,
    )
