"""One decoder layer of any backbone's shape, for latency: random weights, and an adapter that has learnt one task."""

import copy

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, PretrainedConfig

from himalaya_adapter.methods.himalaya import HimalayaConfig

TASK = "task 0"


def one_layer(backbone: PretrainedConfig) -> PeftModel:
    """The first layer of a model of this shape, adapted, with random weights.

    It has no embeddings and no final norm: it takes ``inputs_embeds`` and returns the layer's hidden states.
    """
    small = copy.deepcopy(backbone.get_text_config(decoder=True))
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = 1, 1, None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = AutoModel.from_config(small, dtype=torch.float32).eval()
        inner.norm = nn.Identity()
        model = get_peft_model(inner, HimalayaConfig(init_weights=False)).eval()
        atoms = model.base_model.himalaya_shared["default"].atoms
        learnt = atoms.detach().clone()
        model.start_task(TASK)
        atoms.data.copy_(learnt)
        model.end_task()
    return model
