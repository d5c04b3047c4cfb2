"""From a torch module to an ONNX file: exported, with the operator's functions, and nothing of this machine in it."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import inliner
from onnx_ir.passes import common as passes
from torch import Tensor, nn

from himalaya_adapter.errors import HimalayaError

from .operator import DOMAIN, FUNCTIONS, OLDEST_OPSET, VERSION

# Smaller tensors stay in the graph file, where shape computations are folded when it is loaded.
EXTERNAL_FROM_BYTES = 4096
PAGE = 4096  # bytes; ONNX Runtime maps a weight into memory as it lies in the file
METADATA_PREFIX = "himalaya."
PAST_PREFIX, PRESENT_PREFIX = "past_key_values.", "present."
NEWEST_OPSET = 23
CLEANING = ir.passes.Sequential(
    passes.RemoveUnusedFunctionsPass(), passes.RemoveUnusedOpsetsPass(), passes.ClearMetadataAndDocStringPass()
)


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
    dynamic: Mapping[str, Mapping[int, str]],
    names: tuple[Sequence[str], Sequence[str]],
    opset: int,
) -> ir.Model:
    """Export a module.

    Args:
        module: Exported in evaluation mode.
        inputs: An example of each argument.
        dynamic: The dimensions of each argument, or of each tensor in it, that may differ at run time, with names.
        names: Of the graph's inputs and outputs.
        opset: Of the graph.
    """
    shapes = {
        name: dynamic[name] if isinstance(example, Tensor) else [dynamic[name] for _ in example]
        for name, example in inputs.items()
    }
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


def finish(model: ir.Model, metadata: Mapping[str, Any]) -> ir.Model:
    """Append the functions that the graph calls, and replace all that the exporter noted by ``metadata``.

    The exporter's notes hold stack traces, with the paths of files on this machine.

    Args:
        model: Changed in place.
        metadata: Texts, and values that are written as JSON, by name without the prefix ``himalaya.``.
    """
    opset = model.opset_imports[""]
    model.opset_imports[DOMAIN] = VERSION
    for function in FUNCTIONS:
        added = ir.serde.deserialize_function(function.to_function_proto())
        added.opset_imports.update({"": opset, DOMAIN: VERSION})
        model.functions[added.identifier()] = added
    CLEANING(model)
    model.doc_string = None
    model.metadata_props.clear()
    for value in ir.convenience.create_value_mapping(model.graph).values():
        value.metadata_props.clear()
        value.doc_string = None
    for name, content in metadata.items():
        model.metadata_props[METADATA_PREFIX + name] = content if isinstance(content, str) else json.dumps(content)
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return model


def write_model(model: ir.Model, path: Path, weights: str | None = None) -> None:
    """Write a finished graph.

    Args:
        model: From `finish`.
        path: The file.
        weights: Name of a file beside it for the large tensors; without it they are in the graph's own file.
    """
    ir.save(
        model,
        path,
        external_data=weights,
        size_threshold_bytes=EXTERNAL_FROM_BYTES,
        alignment=PAGE,
        align_threshold=0,
    )


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
