"""Perplexity against one text at a time, and the drift of a base model under an adapter."""

import copy
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.drift import base_drift, perplexity

MAX_LENGTH = 128
TEXTS = ["the sky is blue", "Der Hund schläft auf dem großen Sofa.", "x", "Кошка сидит на окне и смотрит на птиц."]


def with_lora(model: LlamaForCausalLM) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


@torch.no_grad()
def brute_force_perplexity(model: Any, tokenizer: Any, texts: list[str]) -> float:
    losses = []
    for text in texts:
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        if tokens.shape[1] > 1:
            losses += (
                model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None]).neg().flatten().tolist()
            )
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_perplexity_equals_brute_force(tiny_model, tiny_tokenizer, batch_size: int) -> None:
    model = tiny_model(initializer_range=0.3)
    expected = brute_force_perplexity(model, tiny_tokenizer, TEXTS)
    measured = perplexity(model, tiny_tokenizer, TEXTS, batch_size=batch_size, max_length=MAX_LENGTH)
    assert measured == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, tiny_tokenizer, TEXTS, batch_size=2, max_length=5) != pytest.approx(expected, rel=1e-3)


def test_perplexity_of_a_uniform_model_is_the_vocabulary(tiny_model, tiny_tokenizer) -> None:
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, tiny_tokenizer, TEXTS, batch_size=2, max_length=64) == pytest.approx(len(tiny_tokenizer))


@pytest.mark.parametrize("scale", [math.nan, 1e6])
def test_a_loss_without_a_perplexity_is_refused(tiny_model, tiny_tokenizer, scale: float) -> None:
    model = tiny_model()
    model.lm_head.weight.data *= scale
    with pytest.raises(HimalayaError, match="has diverged"):
        perplexity(model, tiny_tokenizer, TEXTS, batch_size=2, max_length=64)


def test_base_drift_compares_the_adapter_with_the_base(tiny_model, tiny_tokenizer) -> None:
    adapted = with_lora(tiny_model(initializer_range=0.3))
    settings = {"batch_size": 2, "max_length": 64}
    drift = base_drift(adapted, tiny_tokenizer, TEXTS, **settings)
    base = perplexity(tiny_model(initializer_range=0.3), tiny_tokenizer, TEXTS, **settings)
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert drift == pytest.approx(perplexity(merged, tiny_tokenizer, TEXTS, **settings) / base - 1, rel=1e-4)
    assert abs(drift) > 1e-3
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    assert base_drift(adapted, tiny_tokenizer, TEXTS, **settings) == 0.0
