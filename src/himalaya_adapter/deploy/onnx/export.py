"""An adapter as ONNX graphs in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from himalaya_adapter.backbones.catalogue import public_name
from himalaya_adapter.deploy.adapter_folder import LoadedAdapter, load_for_export
from himalaya_adapter.deploy.bundle.runner.graph import open_session
from himalaya_adapter.deploy.neutral_prompt import neutral_prompt
from himalaya_adapter.deploy.quantisation import quantise
from himalaya_adapter.storage import whole_folder, write_json

from .decoder_graph import decoder_graph, without_adapter
from .parity import Differences, check_parity, compare, decoder_cases
from .update import ExportedUpdate, vectors_cases, vectors_graph
from .writing import DEFAULT_OPSET, METADATA_PREFIX, finish, write_function_free, write_model

PARITY_FILE, ADAPTER_FILE = "parity.json", "adapter.onnx"
ADAPTED_FILE, BASE_FILE, MODEL_WEIGHTS = "model.onnx", "model_base.onnx", "model_weights.bin"


def metadata_of(adapter: LoadedAdapter) -> dict[str, Any]:
    """What every graph with the adapter says of itself."""
    return {
        "tasks": list(adapter.tasks),
        "method": adapter.model.active_peft_config.peft_type.value,
        "backbone": public_name(adapter.backbone),
    }


def whole_graph(adapter: LoadedAdapter, opset: int = DEFAULT_OPSET) -> ir.Model:
    """The graph of the whole backbone with the adapter, of `load_for_onnx`."""
    return decoder_graph(adapter.model, adapter.tasks, metadata_of(adapter), opset)


def whole_parity(adapter: LoadedAdapter, adapted: Sequence[Path], base: Path) -> dict[str, Differences]:
    """How far graphs of the backbone with the adapter, and the one without it, are from PyTorch; by file name."""
    model, tokens = adapter.model, neutral_prompt(adapter.tokenizer)
    model.set_task(list(adapter.tasks))  # a row for each
    cases = decoder_cases(model, tokens, len(adapter.tasks))
    found = {path.name: compare(open_session(path), cases) for path in adapted}
    with model.disable_adapter():
        return found | {base.name: compare(open_session(base), decoder_cases(model, tokens, 2))}


def load_for_onnx(folder: Path, tasks: Sequence[str] = (), backbone: str | None = None) -> LoadedAdapter:
    """Load an adapter whose graphs are wanted, in 32 bits; tasks are numbered in the order of its ``tasks``.

    Raises:
        HimalayaError: As `load_for_export`.
    """
    return load_for_export(folder, tasks, "residual_stream", backbone, dtype="float32")


def export_onnx(
    folder: Path,
    output: Path,
    *,
    tasks: Sequence[str] = (),
    opset: int = DEFAULT_OPSET,
    graph: Literal["adapter", "model"] | None = None,
    backbone: str | None = None,
) -> dict[str, Differences]:
    """Write an adapter as ONNX graphs, each compared with PyTorch before the folder appears.

    Args:
        folder: A run's folder, the ``adapter`` or ``release`` folder in it, or a copy of one of these.
        output: A new or empty folder.
        tasks: The tasks that the graphs know, numbered in this order; all by default.
        opset: Of the graphs, 18 to 23.
        graph: The only one that is written: the adapter alone, or the whole model; both by default.
        backbone: As for `load_adapter`.

    Returns:
        How far each graph's outputs are from PyTorch's, by graph and output: what ``parity.json`` holds.

    Raises:
        HimalayaError: As `load_for_export`; a folder that is not empty; a graph that computes something else.
    """
    with whole_folder(output) as place:
        adapter = load_for_onnx(folder, tasks, backbone)
        found: dict[str, Differences] = {}
        if graph != "model":
            path = place / ADAPTER_FILE
            shared = adapter.model.base_model.himalaya_shared["default"]
            vectors = vectors_graph(ExportedUpdate(shared, adapter.tasks), opset)
            write_model(finish(vectors, metadata_of(adapter)), path)
            cases = vectors_cases(shared, adapter.tasks)
            found |= {file.name: compare(open_session(file), cases) for file in (path, write_function_free(path))}
        if graph != "adapter":
            base, adapted = write_pair(whole_graph(adapter, opset), place)
            found |= whole_parity(adapter, [adapted, write_function_free(adapted)], base)
        check_parity(found)
        write_json(place / PARITY_FILE, found)
    return found


def write_pair(adapted: ir.Model, place: Path, precision: str = "fp32") -> tuple[Path, Path]:
    """Write a graph of a decoder without the adapter, and the same with it, on one file of weights.

    Args:
        adapted: From `decoder_graph`; it is left as it is.
        place: The folder.
        precision: Of the base's weights (`quantise`).

    Returns:
        The files of the two graphs.
    """
    write_model(quantise(adapted, precision), place / ADAPTED_FILE, MODEL_WEIGHTS)
    base = without_adapter(ir.load(place / ADAPTED_FILE))  # its large tensors stay in the file of weights
    backbone = adapted.metadata_props[f"{METADATA_PREFIX}backbone"]
    write_model(finish(base, {"backbone": backbone}), place / BASE_FILE)
    return place / BASE_FILE, place / ADAPTED_FILE
