"""A decoder's graph without the adapter and its graph with it: a run's whole backbone, or one layer of any shape."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import onnx

from himalaya_adapter.backbones.shape import backbone_shape
from himalaya_adapter.deploy.adapter_nodes import name_adapter_nodes
from himalaya_adapter.deploy.onnx.decoder_graph import decoder_graph, standing_in
from himalaya_adapter.deploy.onnx.export import DEFAULT_OPSET, LAYER_FILES, MODEL_FILES, OnnxAdapter, write_pair
from himalaya_adapter.deploy.onnx.layer_graph import one_layer, random_adapter
from himalaya_adapter.deploy.onnx.tables import become_release, make_tables
from himalaya_adapter.deploy.onnx.update import Routing, exported_update

SHORT_NAMES = {"llama-2-7b": "NousResearch/Llama-2-7b-hf"}


class GraphPair(NamedTuple):
    """Two graphs that differ in the adapter alone; the names of its nodes say that they are its own."""

    base: onnx.ModelProto
    adapted: onnx.ModelProto


def backbone_pair(adapter: OnnxAdapter) -> GraphPair:
    """The graphs of a run's whole backbone."""
    with standing_in(adapter.loaded.model, adapter.update) as model, tempfile.TemporaryDirectory() as folder:
        graph = decoder_graph(model, adapter.update, DEFAULT_OPSET)
        write_pair(graph, adapter.metadata, Path(folder), MODEL_FILES)
        return _read(Path(folder) / MODEL_FILES.base, Path(folder) / MODEL_FILES.adapted)


def layer_pair(shape: str, routing: Routing | None) -> GraphPair:
    """The graphs of one decoder layer with random weights, adapted as after a stream of one task.

    Args:
        shape: A backbone as for `backbone_shape`, or a short name (`SHORT_NAMES`).
        routing: See `exported_update`.

    Raises:
        HimalayaError: An unknown backbone.
    """
    backbone = backbone_shape(SHORT_NAMES.get(shape, shape))
    shared, config, tasks = random_adapter(backbone.get_text_config(decoder=True).hidden_size)
    update = exported_update(make_tables(become_release(shared, config), config, tasks), routing)
    with standing_in(one_layer(backbone, config), update) as model, tempfile.TemporaryDirectory() as folder:
        graph = decoder_graph(model, update, DEFAULT_OPSET)
        write_pair(graph, {"tasks": list(tasks), "backbone": Path(shape).name}, Path(folder), LAYER_FILES)
        return _read(Path(folder) / LAYER_FILES.base, Path(folder) / LAYER_FILES.adapted)


def _read(base: Path, adapted: Path) -> GraphPair:
    pair = GraphPair(onnx.load(base), onnx.load(adapted))
    name_adapter_nodes(pair.adapted)
    return pair
