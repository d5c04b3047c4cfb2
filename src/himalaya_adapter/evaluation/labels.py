"""Classification with a language model: which of the label strings is the likeliest answer."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from himalaya_adapter.evaluation.batching import Batch, batches


@dataclass(frozen=True)
class Choice:
    """What the model does with one prompt.

    Args:
        label: Index of the likeliest label.
        written: Index of the label that greedy generation writes, token by token and then ends; ``None`` if it writes
            anything else. A model that has lost the answer format still chooses labels but no longer writes them.
    """

    label: int
    written: int | None


def choose_labels(
    model: Any,
    prompts: Sequence[list[int]],
    labels: Sequence[list[int]],
    stop: frozenset[int],
    *,
    batch_size: int,
    padding: int,
    advance: Callable[[int], None],
) -> list[Choice]:
    """Choose a label for each prompt by its likelihood, and see which label greedy generation would write.

    The score of a label is ``(1 / m) Σ_t log p(y_t | prompt, y_<t)`` over its m tokens, EOS not included: the mean
    keeps long labels comparable with short ones. When the first tokens of all labels differ, that first token decides
    and its log-probability alone is the score; one forward pass of the prompts then scores all labels. Otherwise each
    label is read over the prompts' KV cache, so the prompts are never computed twice.

    Nothing is generated: greedy decoding writes a label exactly when each of the label's tokens, and then a token that
    ends the answer, is the likeliest one given those before it. Reading the label over the same cache shows that. (The
    same text cut into other tokens is not seen.)

    In bfloat16 logits near 15 lie 1/16 apart, so labels can tie exactly; the earlier label then wins, and a near tie
    can fall differently in another batch.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Tokens of each prompt.
        labels: Tokens of each label as they follow a prompt, without EOS.
        stop: Tokens that end an answer.
        batch_size: Prompts per forward pass.
        padding: Token to pad with.
        advance: Called with the number of prompts done after each batch.

    Returns:
        One choice per prompt, in the order of ``prompts``.
    """
    choices: dict[int, Choice] = {}
    choose = choose_by_first_token if len({label[0] for label in labels}) == len(labels) else choose_by_whole_label
    ends = torch.tensor(sorted(stop), device=model.device)
    for batch in batches(prompts, batch_size, padding, model.device):
        read = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=True,
            logits_to_keep=1,
        )
        first = read.logits[:, -1].float().log_softmax(dim=-1)
        chosen, written = choose(model, batch, read.past_key_values, first, labels, ends)
        for index, label, is_written in zip(batch.indices, chosen, written, strict=True):
            choices[index] = Choice(label, is_written)
        advance(len(batch.indices))
    return [choices[index] for index in range(len(prompts))]


def choose_by_first_token(
    model: Any, batch: Batch, cache: Any, first: Tensor, labels: Sequence[list[int]], ends: Tensor
) -> tuple[list[int], list[int | None]]:
    """Chosen and written label of each row, for labels whose first tokens differ.

    Greedy generation can only write the chosen label: its first token is the likeliest of all or no label's is.
    """
    starts = torch.tensor([label[0] for label in labels], device=first.device)
    chosen: list[int] = first[:, starts].argmax(dim=1).tolist()
    _, greedy = read_answers(model, batch, cache, first, [labels[label] for label in chosen], ends)
    return chosen, [label if is_greedy else None for label, is_greedy in zip(chosen, greedy.tolist(), strict=True)]


def choose_by_whole_label(
    model: Any, batch: Batch, cache: Any, first: Tensor, labels: Sequence[list[int]], ends: Tensor
) -> tuple[list[int], list[int | None]]:
    """Chosen and written label of each row, for labels that share first tokens."""
    scores, written = [], []
    for label in labels:
        # The forward pass appends to the cache it is given.
        score, greedy = read_answers(model, batch, copy.deepcopy(cache), first, [label] * len(first), ends)
        scores.append(score)
        written.append(greedy)
    which = torch.stack(written, dim=1)  # (batch, labels), at most one per row
    chosen: list[int] = torch.stack(scores, dim=1).argmax(dim=1).tolist()
    return chosen, [row.index(True) if True in row else None for row in which.tolist()]


def read_answers(
    model: Any, batch: Batch, cache: Any, first: Tensor, answers: Sequence[list[int]], ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Read one answer after each prompt of a batch.

    Args:
        model: A causal language model.
        batch: The prompts.
        cache: Their keys and values; the answers are appended to it.
        first: ``(batch, vocabulary)`` log-probabilities of the token that follows each prompt.
        answers: Tokens of each row's answer, none empty.
        ends: Tokens that end an answer.

    Returns:
        ``(batch,)`` mean log-probability of each answer's tokens, and ``(batch,)`` whether greedy generation writes
        exactly this answer and then ends.
    """
    lengths = torch.tensor([len(answer) for answer in answers], device=first.device)
    columns = torch.arange(int(lengths.max()), device=first.device)
    # Answers are padded on the right: they continue prompts that all end in the same column.
    padded = [answer + [answer[-1]] * (len(columns) - len(answer)) for answer in answers]
    tokens = torch.tensor(padded, device=first.device)
    real = columns < lengths[:, None]
    logits = model(
        input_ids=tokens,
        attention_mask=torch.cat([batch.attention_mask, real.long()], dim=1),
        position_ids=batch.attention_mask.sum(dim=1, keepdim=True) + columns,
        past_key_values=cache,
        use_cache=True,
    ).logits
    # Column t predicts answer token t; the column after the last token predicts the end.
    log_probabilities = torch.cat([first[:, None], logits.float().log_softmax(dim=-1)], dim=1)
    of_tokens = log_probabilities[:, :-1].gather(-1, tokens[..., None]).squeeze(-1)
    likeliest = log_probabilities.argmax(dim=-1)
    follows = ((likeliest[:, :-1] == tokens) | ~real).all(dim=1)
    stops = torch.isin(likeliest.gather(1, lengths[:, None]).squeeze(1), ends)
    return of_tokens.where(real, 0.0).sum(dim=1) / lengths, follows & stops
