"""One decoder layer of any backbone's shape as a graph, for latency: random weights, any adapter of that width."""

import copy

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, PretrainedConfig

from himalaya_adapter.methods.himalaya import HimalayaConfig, SharedAdapter

# Of what training adds to a fresh head, so that gates, coefficients and gains vary from token to token.
TRAINED_NOISE = 0.2


def one_layer(backbone: PretrainedConfig, config: HimalayaConfig) -> PeftModel:
    """The first layer of a model of this shape, with random weights, its modules adapted as the config says.

    It has no embeddings and no final norm: it takes ``inputs_embeds`` and returns the layer's hidden states.
    """
    small = copy.deepcopy(backbone.get_text_config(decoder=True))
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = 1, 1, None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(small, dtype=torch.float32).eval()
    model.norm = nn.Identity()
    return get_peft_model(model, HimalayaConfig(target_modules=config.target_modules)).eval()


def random_adapter(width: int, tasks: int = 1, seed: int = 0) -> tuple[SharedAdapter, HimalayaConfig, tuple[str, ...]]:
    """An adapter of this width as after a stream of tasks, for shapes on which none was trained.

    Args:
        width: Of the hidden states.
        tasks: How many tasks it has learnt.
        seed: Of its values.

    Returns:
        The shared state, its configuration and the tasks' names.
    """
    config = HimalayaConfig(seed=seed)
    names = tuple(f"task {number}" for number in range(tasks))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        shared = SharedAdapter(config, width).eval()
        shared.fit_projection(torch.randn(256, width))
        for name in names:
            shared.start_task(name)
            shared.end_task()
        shared.router.head.add_(torch.randn_like(shared.router.head), alpha=TRAINED_NOISE)
    return shared, config, names
