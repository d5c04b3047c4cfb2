"""How a task begins: from its first residuals (docs/method-strict.md, section 6)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from himalaya_adapter.methods.output_layer import OutputLayer

from .adapter import StrictAdapter

EXAMPLES_AT_ONCE = 4  # the backward pass needs all that a forward pass computes


def first_residuals(model: nn.Module, adapter: StrictAdapter, examples: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    r"""One pass over a few examples: the layers' inputs, and how the loss falls with a shared rank-one update.

    Returns:
        The inputs ``(n, d)`` of all adapted layers at all tokens that are not padding (none after the first task,
        which alone needs them), and the ``(d, d)`` sum of
        :math:`-\tfrac12 (g \hat x^\top + \hat x g^\top)` over them, :math:`g` being the gradient of the loss by
        the layer's output. To first order, an update :math:`\gamma r r^\top` lowers the loss by
        :math:`\gamma r^\top C r` (docs/method-strict.md, section 6).
    """
    inputs: list[Tensor] = []
    curvature = adapter.code.new_zeros(adapter.dictionary.width, adapter.dictionary.width)
    mask = torch.empty(0)

    def seen(states: Tensor) -> Tensor:  # some models flatten the batch before a module
        return states.detach().float().reshape(-1, states.shape[-1])[mask.flatten()]

    def widen(states: Tensor) -> Tensor:  # narrower modules use the leading slices of the atoms
        return nn.functional.pad(states, (0, adapter.dictionary.width - states.shape[-1]))

    def record(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        hidden_states = seen(positional[0] if positional else named["hidden_states"])
        normalised = hidden_states / hidden_states.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        if adapter.tasks_learnt == 0:
            inputs.append(widen(normalised))
        acted_on = widen(hidden_states if adapter.config.placement == "weights" else normalised)
        first = output[0] if isinstance(output, tuple) else output

        def add(gradient: Tensor) -> None:
            product = widen(seen(gradient)).T @ acted_on
            curvature.sub_(((product + product.T) / 2).to(curvature.device))

        first.register_hook(add)

    layers = [one for one in model.modules() if isinstance(one, OutputLayer) and adapter in one.shared.values()]
    handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    labelled = (examples["labels"][:, 1:] >= 0).sum()
    was_training = model.training
    try:
        model.eval()
        for start in range(0, len(examples["input_ids"]), EXAMPLES_AT_ONCE):
            # What is no tensor of examples, such as ``logits_to_keep``, goes with each.
            batch = {
                key: value[start : start + EXAMPLES_AT_ONCE] if torch.is_tensor(value) else value
                for key, value in examples.items()
            }
            # Of the mean loss of all examples.
            share = (batch["labels"][:, 1:] >= 0).sum() / labelled
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            with torch.enable_grad():
                (share * model(**batch).loss).backward()
    finally:
        model.train(was_training)
        model.zero_grad()
        for handle in handles:
            handle.remove()
    return torch.cat(inputs) if inputs else torch.empty(0, adapter.dictionary.width), curvature
