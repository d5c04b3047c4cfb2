"""Greedy generation of answers in batches, and where an answer ends."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from himalaya_adapter.evaluation.batching import batches, padding_token

NEWLINE = "\n"
# Arguments of every ``generate``: a model's own settings fill what is left out, and some would change greedy decoding.
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@lru_cache(maxsize=4)
def stop_tokens(tokenizer: Any, newline_ends: bool) -> frozenset[int]:
    """Tokens that end an answer: every special token and, if ``newline_ends``, every token that holds a line break.

    Decoding the whole vocabulary takes a quarter of a second, hence the cache.
    """
    stop = set(tokenizer.all_special_ids)
    if newline_ends:
        vocabulary = range(len(tokenizer))
        texts = tokenizer.batch_decode([[token] for token in vocabulary], clean_up_tokenization_spaces=False)
        stop |= {token for token in vocabulary if NEWLINE in texts[token]}
    return frozenset(stop)


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    newline_ends: bool,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[str]:
    """The greedy continuation of each prompt up to EOS (or the end of the line), without outer white space.

    Args:
        model: A causal language model in evaluation mode, bare or wrapped by PEFT.
        tokenizer: Its tokenizer.
        prompts: Tokens of each prompt.
        max_new_tokens: How far generation goes at most.
        newline_ends: Whether an answer is one line.
        batch_size: Prompts per batch.
        advance: Called with the number of prompts done after each batch.

    Returns:
        One text per prompt, in the order of ``prompts``.
    """
    stop = stop_tokens(tokenizer, newline_ends)
    padding = padding_token(tokenizer)
    texts: dict[int, str] = {}
    for batch in batches(prompts, batch_size, padding, model.device):
        written = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop),
            pad_token_id=padding,
            **GREEDY,
        )
        for index, row in zip(batch.indices, written[:, batch.input_ids.shape[1] :].tolist(), strict=True):
            texts[index] = answer_text(tokenizer, row, stop, newline_ends)
        advance(len(batch.indices))
    return [texts[index] for index in range(len(prompts))]


def answer_text(tokenizer: Any, tokens: Sequence[int], stop: frozenset[int], newline_ends: bool) -> str:
    """Decode generated tokens up to the first that ends the answer."""
    end = next((position for position, token in enumerate(tokens) if token in stop), len(tokens))
    # The ending token may hold text before its line break, so it is decoded too.
    text: str = tokenizer.decode(tokens[: end + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return (text.split(NEWLINE)[0] if newline_ends else text).strip()
