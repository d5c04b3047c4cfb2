"""The frozen model below an adapter: what it makes of prompts, whatever the adapter has learnt."""

import inspect
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from himalaya_adapter.errors import HimalayaError

# The names that transformers gives to a decoder's list of layers; what sees or hears beside it has them, too.
DECODER_LAYERS = r"(?!.*(vision|visual|audio))(.*\.)?(layers|h|blocks)\.\d+"


class _Reached(Exception):
    """Ends a pass at the layer whose output is wanted."""


@contextmanager
def as_frozen(model: nn.Module) -> Iterator[None]:
    """A block in which the model is in evaluation, and its adapters are off."""
    with ExitStack() as afterwards:
        for module in model.modules():
            afterwards.callback(setattr, module, "training", module.training)
            if isinstance(module, BaseTunerLayer):
                afterwards.callback(setattr, module, "_disable_adapters", module.disable_adapters)
                module._disable_adapters = True  # PEFT's own switch also decides what is trained
        model.eval()
        yield


def middle_layer(model: nn.Module) -> nn.Module | None:
    """The decoder layer in the middle of a model; none if its layers have unusual names, or follow an encoder."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    layers = [module for name, module in model.named_modules() if re.fullmatch(DECODER_LAYERS, name)]
    return layers[(len(layers) - 1) // 2] if layers else None


@torch.no_grad()
def middle_states(model: nn.Module, embeddings: Tensor, mask: Tensor) -> Tensor:
    """Hidden states ``(b, s, d)`` after the frozen model's middle layer, in a pass of its own that ends there.

    Args:
        model: A language model of transformers, with a `middle_layer`.
        embeddings: Input embeddings ``(b, s, d)``.
        mask: 1 at the tokens, 0 at padding, ``(b, s)``.

    Raises:
        HimalayaError: It has none.
    """
    decoder: Any = model.base_model
    middle = middle_layer(model)
    if middle is None:
        raise HimalayaError(
            f"{type(model).__name__} has an encoder, or no decoder layers by a usual name (layers, h, blocks), so "
            "tasks cannot be told from prompts: name the task"
        )
    given = {"inputs_embeds": embeddings, "attention_mask": mask.long(), "use_cache": False}
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        given["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
    found: list[Tensor] = []

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    with ExitStack() as afterwards:
        afterwards.callback(middle.register_forward_hook(stop).remove)
        afterwards.enter_context(as_frozen(model))
        with suppress(_Reached):
            decoder(**given)
    return found[0].reshape(-1, *found[0].shape[-3:])[0]  # Gemma 3n has several streams; the first is predicted from
