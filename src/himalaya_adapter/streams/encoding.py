"""The one place that turns text into tokens, for training and evaluation alike.

Text is data: what looks like a special token in it becomes the tokens of its characters, never a control token.
"""

from collections.abc import Sequence
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.task import Item

IGNORED_LABEL = -100  # torch's cross-entropy skips this label
# SentencePiece tokenizers put a space before the first word of a text, so " word" alone would begin with two spaces.
# A target is therefore tokenized after this character, whose tokens are cut off again.
ANCHOR = ":"


class TargetTooLong(HimalayaError):
    """A target that leaves no room for its prompt."""


def encode_text(tokenizer: Any, text: str, *, control: bool = False) -> list[int]:
    """Tokens of a text alone, without BOS and EOS; with ``control``, its special tokens are read as such."""
    tokens: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=not control)["input_ids"]
    return tokens


def encode_prompt(tokenizer: Any, prompt: str, max_length: int, *, chat: bool = False) -> list[int]:
    """Tokens of a prompt, with the BOS token if the tokenizer adds one; a prompt that is too long loses its beginning.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt: Plain text; or, with ``chat``, what the tokenizer's chat template has made, its own BOS included.
        max_length: The most tokens returned, BOS included.
        chat: See `Item`.
    """
    tokens = encode_text(tokenizer, prompt, control=chat)
    start = [] if chat else _start_tokens(tokenizer)
    room = max(max_length - len(start), 0)
    return (start + tokens[max(len(tokens) - room, 0) :])[:max_length]


def encode_target(tokenizer: Any, target: str, *, chat: bool = False) -> list[int]:
    """Tokens of one space and ``target`` as they follow a prompt, then EOS; in a conversation without the space.

    Raises:
        HimalayaError: The tokenizer has no EOS token, so a target could not end.
    """
    if tokenizer.eos_token_id is None:
        raise HimalayaError("the tokenizer has no end-of-sequence token; set tokenizer.eos_token")
    if chat:
        return [*encode_text(tokenizer, target), tokenizer.eos_token_id]
    anchor = encode_text(tokenizer, ANCHOR)
    tokens = encode_text(tokenizer, f"{ANCHOR} {target}")
    if tokens[: len(anchor)] != anchor:  # the anchor merged with the target
        return [*encode_text(tokenizer, f" {target}"), tokenizer.eos_token_id]
    return [*tokens[len(anchor) :], tokenizer.eos_token_id]


def encode_item(tokenizer: Any, item: Item, max_length: int) -> dict[str, list[int]]:
    """One training example: ``input_ids``, ``attention_mask`` and ``labels``, of one length ≤ ``max_length``.

    Labels are ``-100`` on the prompt. The target is never truncated; the prompt loses its beginning instead.

    Raises:
        TargetTooLong: The target alone leaves no room for the prompt.
    """
    target = encode_target(tokenizer, item.target, chat=item.chat)
    if len(target) >= max_length:
        raise TargetTooLong(
            f"the target of source item '{item.source}' has {len(target)} tokens; "
            f"the most of an example are {max_length} (dataset.max_seq_length), which must be larger"
        )
    prompt = encode_prompt(tokenizer, item.prompt, max_length - len(target), chat=item.chat)
    input_ids = prompt + target
    return {
        "input_ids": input_ids,
        "attention_mask": [1] * len(input_ids),
        "labels": [IGNORED_LABEL] * len(prompt) + target,
    }


def count_truncated(tokenizer: Any, items: Sequence[Item], max_length: int, *, with_targets: bool) -> int:
    """How many prompts lose their beginning at ``max_length`` tokens, with or without the target behind them."""
    prompts = [encode_text(tokenizer, item.prompt) for item in items]
    room = max_length - len(_start_tokens(tokenizer))
    ends = (len(encode_target(tokenizer, item.target)) if with_targets else 0 for item in items)
    return sum(len(prompt) + end > room for prompt, end in zip(prompts, ends, strict=True))


def _start_tokens(tokenizer: Any) -> list[int]:
    bos = tokenizer.bos_token_id
    with_special: list[int] = tokenizer("")["input_ids"]
    return [bos] if bos is not None and with_special[:1] == [bos] else []
