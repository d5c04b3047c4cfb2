"""From a torch module to an ONNX file: exported, with the operator's functions, and nothing of this machine in it."""

import json
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import inliner
from torch import Tensor, nn

from himalaya_adapter.errors import HimalayaError

from .operator import DOMAIN, FUNCTIONS, OLDEST_OPSET, VERSION

# Smaller tensors stay in the graph file, where shape computations are folded when it is loaded.
EXTERNAL_FROM_BYTES = 4096
METADATA_PREFIX = "himalaya."
PAST_PREFIX, PRESENT_PREFIX = "past_key_values.", "present."
NEWEST_OPSET = 23


def check_opset(opset: int) -> None:
    """Refuse an opset that the graphs cannot be written in.

    Raises:
        HimalayaError: It is too old, or newer than the exporter knows.
    """
    if opset < OLDEST_OPSET:
        raise HimalayaError(f"opset {opset} is too old for these graphs: the smallest supported is {OLDEST_OPSET}")
    if opset > NEWEST_OPSET:
        raise HimalayaError(f"opset {opset} is newer than {NEWEST_OPSET}, the newest that these graphs are written in")


def export_module(
    module: nn.Module,
    inputs: Mapping[str, Tensor | Sequence[Tensor]],
    dynamic: Mapping[str, Sequence[int]],
    names: tuple[Sequence[str], Sequence[str]],
    opset: int,
) -> ir.Model:
    """Export a module.

    Args:
        module: Exported in evaluation mode.
        inputs: An example of each argument.
        dynamic: The dimensions of each argument, or of each tensor in it, that may differ at run time.
        names: Of the graph's inputs and outputs.
        opset: Of the graph.
    """
    shapes: dict[str, Any] = {}
    for name, example in inputs.items():
        axes = dict.fromkeys(dynamic[name], torch.export.Dim.DYNAMIC)
        shapes[name] = axes if isinstance(example, Tensor) else [axes for _ in example]
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # it misses torchvision, which nothing here uses
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                (),
                kwargs=dict(inputs),
                dynamic_shapes=shapes,
                input_names=names[0],
                output_names=names[1],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    assert program is not None
    return program.model


def name_dimensions(model: ir.Model, names: Mapping[str, Mapping[int, str]]) -> None:
    """Give the free dimensions of a graph's inputs names that say what they are, wherever they occur in the graph.

    Args:
        model: Changed in place.
        names: Of the dimensions of each input, by their position.
    """
    known: dict[str | None, str] = {}
    for value in model.graph.inputs:
        if value.shape is not None and value.name is not None:
            for axis, name in names[value.name].items():
                known[getattr(value.shape[axis], "value", None)] = name
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            dimensions = [dim if isinstance(dim, int) else known.get(dim.value, dim) for dim in value.shape]
            value.shape = ir.Shape(dimensions)


def finish(model: ir.Model, metadata: Mapping[str, Any]) -> ir.Model:
    """Append the functions that the graph calls, and replace all that the exporter noted by ``metadata``.

    The exporter's notes hold stack traces, with the paths of files on this machine.

    Args:
        model: Changed in place.
        metadata: Texts, and values that are written as JSON, by name without the prefix ``himalaya.``.
    """
    opset = model.opset_imports[""]
    if any(node.domain == DOMAIN for node in model.graph):
        model.opset_imports[DOMAIN] = VERSION
        for function in FUNCTIONS:
            proto = function.to_function_proto()
            del proto.opset_import[:]
            for entry in (("", opset), (DOMAIN, VERSION)):
                proto.opset_import.append(onnx.helper.make_opsetid(*entry))
            proto.doc_string = ""
            added = ir.serde.deserialize_function(proto)
            model.functions[added.identifier()] = added
    else:
        model.opset_imports.pop(DOMAIN, None)
    _keep_called(model)
    model.doc_string = model.graph.doc_string = None
    model.metadata_props.clear()
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in parts:
        graph.metadata_props.clear()
        values = [*graph.inputs, *(graph.initializers.values() if isinstance(graph, ir.Graph) else ())]
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            values += node.outputs
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None
    for name, content in metadata.items():
        model.metadata_props[METADATA_PREFIX + name] = content if isinstance(content, str) else json.dumps(content)
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return model


def _keep_called(model: ir.Model) -> None:
    called: set[Any] = set()
    waiting: list[Iterable[ir.Node]] = [model.graph.all_nodes()]
    while waiting:
        for node in waiting.pop():
            key = node.op_identifier()
            if key in model.functions and key not in called:
                called.add(key)
                waiting.append(model.functions[key].all_nodes())
    for key in [key for key in model.functions if key not in called]:
        del model.functions[key]


def write_model(model: ir.Model, path: Path, weights: str | None = None) -> None:
    """Write a finished graph.

    Args:
        model: From `finish`.
        path: The file.
        weights: Name of a file beside it for the large tensors; without it they are in the graph's own file.
    """
    ir.save(model, path, external_data=weights, size_threshold_bytes=EXTERNAL_FROM_BYTES)


def write_function_free(source: Path, path: Path) -> None:
    """Write a copy whose functions are inlined, for runtimes without functions; large tensors stay where they are."""
    model = inliner.inline_local_functions(onnx.load(source, load_external_data=False))
    standard = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    onnx.save(model, path)


def function_free(name: str) -> str:
    """The name of a graph file's copy without functions."""
    return name.replace(".onnx", "_function_free.onnx")
