"""Tiny random models of three families, and the adapter settings under which each is tested."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from himalaya_adapter.methods.coltas import ColtasConfig
from himalaya_adapter.methods.glodis import GlodisConfig
from himalaya_adapter.methods.himalaya import HimalayaConfig
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig
from himalaya_adapter.methods.lilac import LilacConfig
from himalaya_adapter.methods.loreft import LoReftConfig
from himalaya_adapter.methods.olora import OLoraConfig

VOCABULARY = 128
PADDING = 0
WIDTH = 64
# Large enough that greedy answers differ from prompt to prompt and no two logits tie.
INIT_STD = 0.15
SHARED_SIZES = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": 4, "pad_token_id": PADDING}
NO_END = {"bos_token_id": None, "eos_token_id": None}


def llama(layers: int = 2, std: float = INIT_STD, **changes: Any) -> LlamaForCausalLM:
    sizes = SHARED_SIZES | NO_END | {"intermediate_size": 128, "num_key_value_heads": 2, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**sizes | changes, initializer_range=std))


def qwen2() -> Qwen2ForCausalLM:
    sizes = SHARED_SIZES | NO_END | {"intermediate_size": 128, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, initializer_range=INIT_STD))


def opt() -> OPTForCausalLM:
    sizes = SHARED_SIZES | NO_END | {"ffn_dim": 128, "word_embed_proj_dim": WIDTH, "num_hidden_layers": 2}
    return OPTForCausalLM(OPTConfig(**sizes, init_std=INIT_STD, dropout=0.0))


@dataclass(frozen=True)
class Case:
    """One row of the behaviour matrix: a model family, a method and what is changed in its configuration."""

    family: Callable[[], PreTrainedModel]
    changes: dict[str, Any] = field(default_factory=dict)
    method: type[PeftConfig] = HimalayaStrictConfig

    def base(self, seed: int = 0) -> PreTrainedModel:
        """The frozen model, in evaluation mode; the same seed gives the same weights."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.family().eval()

    def config(self, *, fresh: bool = False, **more: Any) -> Any:
        """A new configuration; unless ``fresh``, of an adapter that starts at random, so that it does something."""
        return self.method(task_type="CAUSAL_LM", init_weights=fresh, **self.changes, **more)

    def adapted(self, **more: Any) -> PeftModel:
        """The model with an adapter of such a configuration; the same at every call."""
        base = self.base()
        torch.manual_seed(0)  # some methods start from torch's own random state
        return get_peft_model(base, self.config(**more)).eval()

    @property
    def prefix(self) -> str:
        """With which the names of the method's parameters begin."""
        return f"{self.config().peft_type.value.lower()}_"


SQUARE = {"placement": "weights", "target_modules": ["q_proj", "o_proj"]}
OBLONG = {"placement": "weights", "target_modules": ["k_proj", "v_proj", "gate_proj"]}
OF_OPT = {"placement": "weights", "target_modules": ["q_proj", "out_proj", "fc1", "fc2"]}
HIMALAYA_STREAM = {
    "himalaya-llama": Case(llama, method=HimalayaConfig),
    "himalaya-qwen2": Case(qwen2, method=HimalayaConfig),
    "himalaya-opt": Case(opt, method=HimalayaConfig),
}
HIMALAYA_WEIGHTS = {
    "himalaya-llama-weights": Case(llama, {"placement": "weights"}, HimalayaConfig),
    "himalaya-qwen2-oblong": Case(qwen2, OBLONG, HimalayaConfig),
    "himalaya-opt-weights": Case(opt, OF_OPT, HimalayaConfig),
}
# The letter of HIMALAYA's source, whose update depends on the token.
STRICT_CASES = {
    "strict-stream": Case(llama, method=HimalayaStrictConfig),
    "strict-oblong": Case(qwen2, OBLONG, HimalayaStrictConfig),
    "strict-residual-norm": Case(opt, OF_OPT | {"norm_target": "residual"}, HimalayaStrictConfig),
}
# Methods whose update is one matrix per module, the same for all tokens.
STATIC_CASES = {
    "lilac-llama": Case(llama, method=LilacConfig),
    "lilac-qwen2-oblong": Case(qwen2, {"target_modules": ["k_proj", "gate_proj", "down_proj"]}, LilacConfig),
    "coltas-llama": Case(llama, method=ColtasConfig),
    "coltas-opt": Case(opt, {"target_modules": ["v_proj", "fc1", "fc2"]}, ColtasConfig),
    "glodis-llama-oblong": Case(llama, {"target_modules": ["v_proj", "up_proj", "down_proj"]}, GlodisConfig),
    "glodis-opt": Case(opt, method=GlodisConfig),
    "o_lora-llama": Case(llama, method=OLoraConfig),
    "o_lora-opt": Case(opt, {"r": 4, "target_modules": ["v_proj", "fc1", "fc2"]}, OLoraConfig),
}
# Methods that edit what decoder layers return.
EDIT_CASES = {
    "loreft-llama": Case(llama, {"r": 4, "first_positions": 3}, LoReftConfig),
    "loreft-qwen2": Case(qwen2, method=LoReftConfig),
    "loreft-opt": Case(opt, {"r": 4}, LoReftConfig),
}


def examples(seed: int = 0, batch: int = 8, length: int = 12) -> dict[str, torch.Tensor]:
    """Model inputs with labels, as a task starts with."""
    tokens = random_tokens(seed, batch, length)
    return {"input_ids": tokens, "labels": tokens}


def random_tokens(seed: int = 0, batch: int = 2, length: int = 12) -> torch.Tensor:
    """Token ids ``(batch, length)`` without padding."""
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
