"""Classification with a language model: which of the label strings is the likeliest answer."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from himalaya_adapter.evaluation.batching import Batch


def choose_labels(
    model: Any, batch: Batch, labels: Sequence[list[int]], stop: Sequence[int]
) -> list[tuple[int, int | None]]:
    """Choose a label for each prompt of a batch by its likelihood, and see which one greedy generation would write.

    The score of a label of m tokens is the log-probability that the answer is this label and nothing more,
    ``Σ_{t≤m} log p(y_t | prompt, y_<t) + log p(end | prompt, y)``, where p(end) is the sum over the tokens that end an
    answer. So labels of any length compare, and a further label changes no other label's score.

    Nothing is generated: greedy decoding writes a label exactly when each of the label's tokens, and then a token that
    ends the answer, is the likeliest one given those before it. (The same text cut into other tokens is not seen.)

    Labels are read over the prompts' KV cache, so the prompts are never computed twice. A label's score is at most
    the log-probability of its first token. So each prompt's labels are read in that order, and only until no other
    can be the likeliest: after the first one, mostly, if the model knows the task.

    In bfloat16 logits near 15 lie 1/16 apart, so labels can tie exactly; the earlier label then wins, and a near tie
    can fall differently in another batch.

    Args:
        model: A causal language model in evaluation mode.
        batch: The prompts.
        labels: Tokens of each label as they follow a prompt, without EOS.
        stop: Tokens that end an answer.

    Returns:
        Of each prompt the indices of the likeliest label and of the one that greedy generation writes, token by token
        and then ends; ``None`` if it writes anything else. A model that has lost the answer format still chooses
        labels but no longer writes them.
    """
    ends = torch.tensor(stop, device=model.device)
    read = model(**batch.inputs, use_cache=True, logits_to_keep=1)
    first = read.logits[:, -1].float().log_softmax(dim=-1)
    scores, written = _read_labels(model, batch, read.past_key_values, first, labels, ends)
    writes = (row.index(True) if True in row else None for row in written.tolist())
    return list(zip(scores.argmax(dim=1).tolist(), writes, strict=True))


def _read_labels(
    model: Any, batch: Batch, cache: Any, first: Tensor, labels: Sequence[list[int]], ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Score, ``(batch, labels)``, and whether it is written, of each label that can be the likeliest or written.

    The score of a label that is not read is −∞. A label that is written begins with the likeliest of all tokens, so
    no label's first token is likelier, and it is read.
    """
    most = first[:, torch.tensor([label[0] for label in labels])]  # no label can score more
    order = most.argsort(dim=1, descending=True, stable=True)
    scores = torch.full_like(most, -torch.inf)
    written = torch.zeros_like(most, dtype=torch.bool)
    for which in order.T:
        which = which[:, None]
        if not (most.gather(1, which) >= scores.amax(dim=1, keepdim=True)).any():
            break
        # The forward pass appends to the cache it is given.
        answers = [labels[label] for label in which.flatten().tolist()]
        score, greedy = read_answers(model, batch, copy.deepcopy(cache), first, answers, ends)
        scores.scatter_(1, which, score[:, None])
        written.scatter_(1, which, greedy[:, None])
    return scores, written


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
        ``(batch,)`` log-probability of each answer with its end, and ``(batch,)`` whether greedy generation writes
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
    after = log_probabilities[torch.arange(len(answers), device=first.device), lengths]
    likeliest = log_probabilities.argmax(dim=-1)
    follows = ((likeliest[:, :-1] == tokens) | ~real).all(dim=1)
    score = of_tokens.where(real, 0.0).sum(dim=1) + after[:, ends].logsumexp(dim=-1)
    return score, follows & torch.isin(after.argmax(dim=-1), ends)
