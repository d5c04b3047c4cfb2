"""Tiny random models of several families, saved with a tokenizer, for tests that load a model by its name."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 1100  # PEFT's tests use token 1000
# Large enough that adapters change the outputs by more than the tests' tolerance.
INIT_STD = 0.15
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_LIKE = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": INIT_STD}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "gemma3_text": LLAMA_LIKE | {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 64, "init_std": INIT_STD, "dropout": 0.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": INIT_STD},
}


def save(family: str, folder: Path) -> None:
    """Write a random model of ``family`` to ``folder``; the same every time."""
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **FAMILIES[family],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w3"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w3", pad_token="w0").save_pretrained(folder)
