"""A decoder's graph without the adapter and its graph with it: a run's whole backbone, or one layer of any shape."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from peft import PeftModel

from himalaya_adapter.backbones.shape import backbone_shape
from himalaya_adapter.deploy.adapter_nodes import name_adapter_nodes
from himalaya_adapter.deploy.onnx.decoder_graph import decoder_graph, standing_in
from himalaya_adapter.deploy.onnx.export import ADAPTED_FILE, BASE_FILE, DEFAULT_OPSET, OnnxAdapter, write_pair
from himalaya_adapter.deploy.onnx.layer_graph import TASK, one_layer
from himalaya_adapter.deploy.onnx.update import ExportedUpdate

SHORT_NAMES = {"llama-2-7b": "NousResearch/Llama-2-7b-hf"}


class GraphPair(NamedTuple):
    """Two graphs that differ in the adapter alone; the names of its nodes say that they are its own."""

    base: onnx.ModelProto
    adapted: onnx.ModelProto


def backbone_pair(adapter: OnnxAdapter) -> GraphPair:
    """The graphs of a run's whole backbone."""
    return _pair(adapter.loaded.model, adapter.update, adapter.metadata)


def layer_pair(shape: str) -> GraphPair:
    """The graphs of one decoder layer with random weights and an adapter that has learnt one task.

    Args:
        shape: A backbone as for `backbone_shape`, or a short name (`SHORT_NAMES`).

    Raises:
        HimalayaError: An unknown backbone.
    """
    model = one_layer(backbone_shape(SHORT_NAMES.get(shape, shape)))
    update = ExportedUpdate(model.base_model.himalaya_shared["default"], [TASK])
    return _pair(model, update, {"tasks": [TASK], "backbone": Path(shape).name})


def _pair(model: PeftModel, update: ExportedUpdate, metadata: Mapping[str, Any]) -> GraphPair:
    with standing_in(model, update) as inner, tempfile.TemporaryDirectory() as folder:
        write_pair(decoder_graph(inner, update, DEFAULT_OPSET), metadata, Path(folder))
        pair = GraphPair(onnx.load(Path(folder) / BASE_FILE), onnx.load(Path(folder) / ADAPTED_FILE))
    name_adapter_nodes(pair.adapted)
    return pair
