"""Greedy generation of answers, and where an answer ends."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from himalaya_adapter.evaluation.batching import Batch

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


def generate_texts(model: Any, tokenizer: Any, batch: Batch, *, max_new_tokens: int, newline_ends: bool) -> list[str]:
    """The greedy continuation of each prompt of a batch, without outer white space.

    Args:
        model: A causal language model in evaluation mode, bare or wrapped by PEFT.
        tokenizer: Its tokenizer.
        batch: The prompts.
        max_new_tokens: How far generation goes at most; it ends before at EOS.
        newline_ends: Whether an answer is one line.
    """
    stop = stop_tokens(tokenizer, newline_ends)
    written = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop),
        pad_token_id=tokenizer.pad_token_id,
        **GREEDY,
    )
    return [answer_text(tokenizer, row, stop, newline_ends) for row in written[:, batch.input_ids.shape[1] :].tolist()]


def answer_text(tokenizer: Any, tokens: Sequence[int], stop: frozenset[int], newline_ends: bool) -> str:
    """Decode generated tokens up to the first that ends the answer."""
    end = next((position for position, token in enumerate(tokens) if token in stop), len(tokens))
    # The ending token may hold text before its line break, so it is decoded too.
    text: str = tokenizer.decode(tokens[: end + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return (text.split(NEWLINE)[0] if newline_ends else text).strip()
