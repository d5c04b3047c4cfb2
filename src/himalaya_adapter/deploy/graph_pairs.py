"""Decoders' graphs with the adapter and without it: a run's whole backbone, or one layer of any shape."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from peft import PeftModel

from himalaya_adapter.backbones.shape import backbone_shape
from himalaya_adapter.deploy.adapter_nodes import name_adapter_nodes
from himalaya_adapter.deploy.onnx.decoder_graph import decoder_graph, standing_in
from himalaya_adapter.deploy.onnx.export import DEFAULT_OPSET, OnnxAdapter, PairFiles, write_pair
from himalaya_adapter.deploy.onnx.layer_graph import TASK, one_layer
from himalaya_adapter.deploy.onnx.update import ExportedUpdate
from himalaya_adapter.deploy.onnx.writing import finish
from himalaya_adapter.deploy.quantisation import quantise

SHORT_NAMES = {"llama-2-7b": "NousResearch/Llama-2-7b-hf"}
FILES = PairFiles(adapted="adapted.onnx", base="base.onnx", weights="weights.bin")


def backbone_graph(adapter: OnnxAdapter) -> onnx.ModelProto:
    """The graph of a run's whole backbone; the names of the adapter's nodes say that they are its own."""
    return _graph(adapter.loaded.model, adapter.update, adapter.metadata)


def layer_graph(shape: str) -> onnx.ModelProto:
    """The graph of one decoder layer with random weights and an adapter that has learnt one task.

    Args:
        shape: A backbone as for `backbone_shape`, or a short name (`SHORT_NAMES`).

    Raises:
        HimalayaError: An unknown backbone.
    """
    model = one_layer(backbone_shape(SHORT_NAMES.get(shape, shape)))
    update = ExportedUpdate(model.base_model.himalaya_shared["default"], [TASK])
    return _graph(model, update, {"tasks": [TASK], "backbone": Path(shape).name})


def _graph(model: PeftModel, update: ExportedUpdate, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    with standing_in(model, update) as inner:
        graph = ir.to_proto(finish(decoder_graph(inner, update, DEFAULT_OPSET), metadata))
    name_adapter_nodes(graph)
    return graph


def write_graphs(adapted: onnx.ModelProto, precision: str, place: Path) -> dict[str, Path]:
    """Write a graph with the adapter and the same without it, on one file of weights.

    Args:
        adapted: The graph; it is left as it is.
        precision: Of the base's weights (`quantise`).
        place: The folder.

    Returns:
        The files of the graphs ``base`` and ``adapted``.
    """
    write_pair(ir.from_proto(quantise(adapted, precision)), place, FILES)
    return {"base": place / FILES.base, "adapted": place / FILES.adapted}
