"""One decoder layer of any backbone's shape, for latency: random weights, and an adapter that has learnt one task."""

import copy

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from himalaya_adapter.methods.himalaya import HimalayaConfig

TASK = "task 0"


def one_layer(backbone: PretrainedConfig) -> PeftModel:
    """The first layer of a model of this shape, adapted, with random weights.

    What is around the layer takes no time: a vocabulary of one token, and no final norm.
    """
    small = copy.deepcopy(backbone.get_text_config(decoder=True))
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = 1, 1, None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
        inner.base_model.norm = nn.Identity()
        model = get_peft_model(inner, HimalayaConfig()).eval()
        with model.learning(TASK):
            nn.init.normal_(model.base_model.himalaya_shared["default"].atoms)
    return model
