"""Batches of token sequences for a model that is only read: sorted by length, padded on the left."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from himalaya_adapter.streams.encoding import encode_prompt
from himalaya_adapter.streams.task import Item

PROMPTS_AT_ONCE = 64
UNLIMITED = 2**20  # tokens, for a backbone that does not say how many it reads


def context_of(model: Any) -> int:
    """The most tokens that a backbone reads, a prompt's and its answer's."""
    return getattr(model.config, "max_position_embeddings", None) or UNLIMITED


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no autograd inside the block; afterwards every submodule has the mode it had before.

    ``model.train(True)`` would not do: a part that somebody keeps in evaluation mode must stay there.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Batch:
    """Some of the sequences.

    Args:
        indices: Where each row stands among all sequences.
        input_ids: ``(batch, width)`` tokens, padding on the left so that every sequence ends in the last column.
        attention_mask: ``(batch, width)``, 1 on tokens and 0 on padding.
    """

    indices: list[int]
    input_ids: Tensor
    attention_mask: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model reads; each sequence counts from 0 at its own first token, as it would without padding."""
        positions = (self.attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "position_ids": positions}


def batches(sequences: Sequence[list[int]], batch_size: int, padding: int, device: torch.device) -> Iterator[Batch]:
    """Cut sequences into batches of similar length, the longest first: what is too large for memory fails at once.

    Args:
        sequences: Token ids of each sequence, none empty.
        batch_size: The most rows of a batch.
        padding: Token id to pad with; the attention mask hides it.
        device: Where the tensors go.
    """
    by_length = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    for start in range(0, len(by_length), batch_size):
        indices = by_length[start : start + batch_size]
        rows = [sequences[index] for index in indices]
        mask = left_padded([[1] * len(row) for row in rows], 0)
        yield Batch(indices, left_padded(rows, padding).to(device), mask.to(device))


def left_padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of numbers, ``(rows, width)``, each with ``filler`` before it up to the longest one."""
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=filler, padding_side="left")


def prompt_batches(
    tokenizer: Any, items: Sequence[Item], max_length: int, device: torch.device, batch_size: int = PROMPTS_AT_ONCE
) -> Iterator[Batch]:
    """The prompts of items in batches; those of more than ``max_length`` tokens lose their beginning."""
    prompts = [encode_prompt(tokenizer, item.prompt, max_length, chat=item.chat) for item in items]
    return batches(prompts, batch_size, tokenizer.pad_token_id, device)
