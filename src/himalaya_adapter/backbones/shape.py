"""A backbone's sizes, and its architecture without weights: enough to count what an adapter on it would cost."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from himalaya_adapter.backbones.catalogue import BACKBONES
from himalaya_adapter.errors import HimalayaError, unknown_name

# What an adapter's backbone is known by: one that differs in any of these is another model.
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")


def sizes_of(config: PretrainedConfig) -> dict[str, int]:
    """The sizes of a model by which an adapter can tell another model."""
    return {size: getattr(config, size) for size in SIZES if hasattr(config, size)}


def hidden_width(model: nn.Module, default: int | None = None) -> int:
    """Width of a language model's hidden states.

    Args:
        model: The model.
        default: What it is for a model whose config names none.

    Raises:
        HimalayaError: Neither is given.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    width = getattr(text, "hidden_size", default)
    if width is None:
        raise HimalayaError(f"the width of {type(model).__name__} is not known: its config has no hidden_size")
    return width


def embedding_width(model: nn.Module) -> int | None:
    """Width of a language model's input embeddings; a model without any cannot infer tasks from prompts."""
    lookup: Any = getattr(model, "get_input_embeddings", lambda: None)
    return getattr(lookup(), "embedding_dim", None)


def backbone_shape(name: str) -> PretrainedConfig:
    """The config of a backbone's model: from the catalogue, a folder, or (a few hundred bytes) the hub.

    Args:
        name: As for `load_backbone`.

    Raises:
        HimalayaError: An unknown name, or a config that is neither cached nor reachable.
    """
    source = BACKBONES.get(name)
    if source is not None:
        return AutoConfig.for_model(**source.shape)
    if not Path(name).is_dir() and "/" not in name:
        raise unknown_name("backbone", name, BACKBONES)
    try:
        return AutoConfig.from_pretrained(name, local_files_only=Path(name).is_dir())
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HimalayaError(f"the config of backbone '{name}' could not be read: {reason}") from error


class ShapeMode(FakeTensorMode):
    """Makes tensors that have a shape and no values; real tensors may take part in what is computed with them."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The mode itself. A tensor's copy takes its mode along, and a mode's copy would free the weak references to
        storages that it does not own: a crash in some later garbage collection (torch 2.13)."""
        return self


def empty_backbone(name: str, dtype: torch.dtype, mode: ShapeMode) -> PreTrainedModel:
    """The model with fake tensors for weights: they have a shape, compute shapes on the meta device, and no values.

    Args:
        name: As for `load_backbone`.
        dtype: Precision of the weights.
        mode: The mode that the tensors belong to.
    """
    config = backbone_shape(name)
    with mode:
        # Plain matrix products also in the attention: fused kernels are not counted on every device.
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
