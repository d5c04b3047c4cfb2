"""From an exporter's graph to an ONNX file: with the operator's functions, and nothing of this machine in it."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from .operator import DOMAIN, FUNCTIONS, VERSION

DEFAULT_OPSET = 18
# Smaller tensors stay in the graph file, where shape computations are folded when it is loaded.
EXTERNAL_FROM_BYTES = 4096
PAGE = 4096  # bytes; ONNX Runtime maps a weight into memory as it lies in the file
METADATA_PREFIX = "himalaya."
CLEANING = ir.passes.Sequential(
    passes.RemoveUnusedFunctionsPass(), passes.RemoveUnusedOpsetsPass(), passes.ClearMetadataAndDocStringPass()
)
INLINING = ir.passes.Sequential(passes.InlinePass(), passes.RemoveUnusedOpsetsPass())


def cache_names(layers: int) -> list[str]:
    """What the tensors of a decoder's cache are called, after `PAST` or `PRESENT`."""
    return [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


@contextmanager
def silent() -> Iterator[None]:
    """Keep exporters and quantisers from warning of what nobody has to know, such as packages that are not used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


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


def write_function_free(source: Path) -> Path:
    """Write a copy beside a graph with its functions inlined, for runtimes without; large tensors stay where they are.

    Returns:
        The copy, named ``*_function_free.onnx``.
    """
    model, path = ir.load(source), source.with_stem(f"{source.stem}_function_free")
    INLINING(model)
    write_model(model, path)
    return path
