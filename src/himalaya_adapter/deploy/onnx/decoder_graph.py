"""A language model with its cache as a graph, with the adapter and without."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import RewriteRule, rewrite
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from himalaya_adapter.deploy.bundle.runner.graph import PAST, PRESENT
from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.methods.himalaya import StreamLayer

from .operator import DOMAIN
from .update import ExportedUpdate
from .writing import DEFAULT_OPSET, cache_names, finish, silent

# ONNX Runtime has one kernel for a norm in this form.
NORM = RewriteRule(
    lambda op, x, v: op.Mul(x, op.Reciprocal(op.Sqrt(v))), lambda op, x, v: op.Div(x, op.Sqrt(v)), name="norm"
)
# Of the examples that are exported; different, so that no dimension is taken for another.
BATCH, LENGTH, SEEN = 2, 3, 5


class DecoderGraph(nn.Module):
    """What a graph of a decoder computes, in positional terms of PyTorch.

    Args:
        model: A language model.
        update: What stands in for the adapter.
    """

    def __init__(self, model: PreTrainedModel, update: ExportedUpdate) -> None:
        super().__init__()
        self.model = model
        self.update = update

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, task: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Logits of the new tokens, then keys and values of all tokens, layer by layer.

        Args:
            input_ids: Tokens, ``(b, s)``.
            attention_mask: 0 at padding, ``(b, t + s)``.
            task: Numbers of the tasks, ``(b,)``.
            past: Keys and values of each layer, ``(b, heads, t, head width)``.
        """
        self.update.begin_run(task)
        cache = DynamicCache(zip(past[::2], past[1::2], strict=True))
        length = input_ids.shape[1]
        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)[:, -length:]
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=_causal_mask(attention_mask, length),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return (outputs.logits, *(one for layer in cache.layers for one in (layer.keys, layer.values)))


def decoder_graph(
    model: PeftModel, tasks: Sequence[str], metadata: Mapping[str, Any], opset: int = DEFAULT_OPSET
) -> ir.Model:
    """Export an adapted language model. From now on it computes its attention step by step (``eager``).

    Args:
        model: The model.
        tasks: Those that the graph knows, in the order of their numbers.
        metadata: As for `finish`.
        opset: Of the graph.

    Raises:
        HimalayaError: An architecture whose layers do not attend to all tokens, whose cache is another one, or that
            PyTorch cannot export.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or (not hasattr(config, "layer_types") and getattr(config, "sliding_window", None)):
        raise HimalayaError(
            f"a {config.model_type} with attention windows cannot be exported: only full attention can"
        )
    if not hasattr(config, "num_key_value_heads"):
        raise HimalayaError(f"a {config.model_type} cannot be exported: its cache is not that of a Llama's kin")
    heads, caches = config.num_key_value_heads, cache_names(config.num_hidden_layers)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    update = ExportedUpdate(model.base_model.himalaya_shared["default"], tasks)
    try:
        with _standing_in(model, update) as inner, torch.no_grad(), silent():
            inner.set_attn_implementation("eager")
            program = torch.onnx.export(
                DecoderGraph(inner, update).eval(),
                kwargs={
                    "input_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long),
                    "attention_mask": torch.ones(BATCH, SEEN + LENGTH, dtype=torch.long),
                    "task": torch.zeros(BATCH, dtype=torch.long),
                    "past": [torch.randn(BATCH, heads, SEEN, head_width) for _ in caches],
                },
                dynamic_shapes={
                    "input_ids": {0: "batch", 1: "sequence"},
                    "attention_mask": {0: "batch", 1: "past + sequence"},
                    "task": {0: "batch"},
                    "past": [{0: "batch", 2: "past"} for _ in caches],
                },
                input_names=["input_ids", "attention_mask", "task", *(PAST + one for one in caches)],
                output_names=["logits", *(PRESENT + one for one in caches)],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = one_line(error.__cause__ or error) or type(error.__cause__).__name__
        raise HimalayaError(f"this {config.model_type} cannot be exported: {reason}") from error
    assert program is not None
    return finish(rewrite(program.model, [NORM]), metadata)


def without_adapter(model: ir.Model) -> ir.Model:
    """Take the operators out of a graph: what is left is the frozen model's own, node for node.

    Args:
        model: Of `decoder_graph`, changed in place.
    """
    for node in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, "Update")]:
        unchanged = cast(ir.Value, node.inputs[0])
        ir.convenience.replace_all_uses_with(node.outputs[0], unchanged, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name != "task"]
    RemoveUnusedNodesPass()(model)
    return model


@contextmanager
def _standing_in(model: PeftModel, update: ExportedUpdate) -> Iterator[PreTrainedModel]:
    """The adapted model with ``update`` in the place of its active adapter, as long as the block lasts."""

    def edit(layer: Any, _: Any, result: Any) -> Any:
        hidden_states = result[0] if isinstance(result, tuple) else result
        edited = update.of_layer(layer.number[model.active_adapter], hidden_states)
        return (edited, *result[1:]) if isinstance(result, tuple) else edited

    with ExitStack() as hooks, model.disable_adapter():
        for module in model.modules():
            if isinstance(module, StreamLayer):
                hooks.enter_context(module.register_forward_hook(edit))
        yield model.base_model.model


def _causal_mask(attention_mask: Tensor, length: int) -> Tensor:
    """Added to attention scores: ``(b, 1, s, t + s)``, the lowest number where a token may not look."""
    keys = torch.arange(attention_mask.shape[1])
    seen = (keys <= keys[-length:, None]) & attention_mask[:, None, None].bool()
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)
