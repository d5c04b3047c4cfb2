"""Answers of a loaded adapter, token by token."""

import re

import torch
from transformers.generation.streamers import BaseStreamer

from himalaya_adapter.deploy.adapter_folder import LoadedAdapter
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import context_of
from himalaya_adapter.evaluation.generation import GREEDY
from himalaya_adapter.streams.encoding import encode_prompt

AUTO = "auto"  # in the place of a task's name: the task that the prompt looks like
HALVES = re.compile("[\ud800-\udfff]")  # what Python reads a byte as that is not UTF-8


def answer(
    adapter: LoadedAdapter,
    prompt: str,
    max_new_tokens: int,
    streamer: BaseStreamer | None = None,
    *,
    chat: bool = False,
) -> str:
    """The greedy answer to a prompt, as the task that the adapter is switched to.

    Args:
        adapter: A loaded adapter.
        prompt: Text in the form of the task's training prompts. One that is too long for the backbone loses its
            beginning.
        max_new_tokens: The most tokens of the answer.
        streamer: Is given each token as soon as it is there.
        chat: Whether the prompt is in the words of the backbone's chat template.

    Raises:
        HimalayaError: The prompt is empty, or the backbone has no room for so long an answer.
    """
    check_request(prompt, max_new_tokens)
    positions = context_of(adapter.model)
    if max_new_tokens >= positions:
        raise HimalayaError(
            f"max_new_tokens={max_new_tokens}: the backbone has {positions} positions, prompt included"
        )
    inputs = encoded(adapter, prompt, positions - max_new_tokens, chat)
    output = adapter.model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_new_tokens,
        pad_token_id=adapter.tokenizer.pad_token_id,
        streamer=streamer,
        **GREEDY,
    )
    return str(adapter.tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True))


def check_request(prompt: str, max_new_tokens: int) -> None:
    """Refuse what no model can answer.

    Raises:
        HimalayaError: The prompt is empty or no text, or no token is asked for.
    """
    if HALVES.search(prompt):
        raise HimalayaError("the prompt holds something else than text in UTF-8")
    if not prompt.strip():
        raise HimalayaError("the prompt is empty: give the text that is to be answered")
    if max_new_tokens < 1:
        raise HimalayaError(f"max_new_tokens={max_new_tokens}: expected a whole number of at least 1")


def encoded(adapter: LoadedAdapter, prompt: str, room: int, chat: bool = False) -> torch.Tensor:
    """Tokens of a prompt ``(1, length)``, as in training; the last ``room`` of them."""
    tokens = encode_prompt(adapter.tokenizer, prompt, room, chat=chat)
    return torch.tensor([tokens], device=adapter.model.device)
