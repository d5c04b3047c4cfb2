"""How far an adapter moves the base model on plain text that no task is about."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from torch.nn.functional import cross_entropy

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import batches, reading

LARGEST = math.log(sys.float_info.max)  # loss that has a perplexity


def perplexity(model: Any, tokenizer: Any, texts: Sequence[str], *, batch_size: int, max_length: int) -> float:
    """``exp(mean over all tokens of −log p(token | those before it in its text))``.

    The mean is over tokens, not texts. The first token of a text (BOS, where the tokenizer adds one) is not predicted.

    Args:
        model: A causal language model; its mode is the same before and after.
        tokenizer: Its tokenizer.
        texts: Plain texts, one of them of two tokens at least.
        batch_size: Texts per forward pass.
        max_length: The most tokens read of a text, from its beginning.

    Raises:
        HimalayaError: The loss is not finite, or its exponential is not.
    """
    encoded = [tokenizer(text, split_special_tokens=True)["input_ids"][:max_length] for text in texts]
    predictable = [tokens for tokens in encoded if len(tokens) > 1]
    total = 0.0
    with reading(model):
        for batch in batches(predictable, batch_size, tokenizer.pad_token_id, model.device):
            logits = model(**batch.inputs, use_cache=False).logits
            # One text at a time: float32 logits of a whole batch over a large vocabulary would double the memory.
            for row, tokens, mask in zip(logits, batch.input_ids, batch.attention_mask.bool(), strict=True):
                own = tokens[mask]
                total += cross_entropy(row[mask][:-1].float(), own[1:], reduction="sum").item()
    mean = total / sum(len(tokens) - 1 for tokens in predictable)
    if not mean < LARGEST:
        raise HimalayaError(
            f"the loss on held-out text is {mean:.3g}: training has diverged (lower the learning rate), or the "
            "backbone's weights are damaged"
        )
    return math.exp(mean)


def base_drift(model: PeftModel, tokenizer: Any, texts: Sequence[str], *, batch_size: int, max_length: int) -> float:
    """``perplexity with the adapter / perplexity without it − 1`` on the same texts; 0 for a fresh adapter.

    Args:
        model: A PEFT model whose adapter is on.
        tokenizer: Its tokenizer.
        texts: Plain texts that belong to no task.
        batch_size: Texts per forward pass.
        max_length: The most tokens read of a text.

    Raises:
        HimalayaError: As ``perplexity``.
    """
    adapted = perplexity(model, tokenizer, texts, batch_size=batch_size, max_length=max_length)
    with model.disable_adapter():
        base = perplexity(model, tokenizer, texts, batch_size=batch_size, max_length=max_length)
    return adapted / base - 1.0
