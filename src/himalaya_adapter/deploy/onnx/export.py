"""A run's adapter as ONNX graphs in a folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnx_ir as ir
import torch
from peft import PeftModel

from himalaya_adapter.backbones.catalogue import public_name
from himalaya_adapter.deploy.adapter_folder import LoadedAdapter, load_adapter
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya import HimalayaConfig, SharedAdapter
from himalaya_adapter.storage import IN_USE, in_use, whole_folder, write_json

from .adapter_graph import adapter_cases, adapter_graph
from .decoder_graph import decoder_graph, standing_in, without_adapter
from .layer_graph import one_layer
from .parity import Case, check_parity, compare, decoder_cases, open_session
from .tables import become_release, make_tables
from .update import ExportedUpdate, Routing, exported_update
from .writing import check_opset, finish, function_free, write_function_free, write_model

DEFAULT_OPSET = 18
PARITY_FILE, ADAPTER_FILE = "parity.json", "adapter.onnx"
PARITY_TOKENS = 64

Graph = Literal["adapter", "layer", "model"]
Parity = dict[str, dict[str, dict[str, float]]]


class DecoderFiles(NamedTuple):
    """The files of a decoder: its graphs with the adapter and without it, and the weights of both."""

    adapted: str
    base: str
    weights: str


LAYER_FILES = DecoderFiles("layer.onnx", "layer_base.onnx", "layer_weights.bin")
MODEL_FILES = DecoderFiles("model.onnx", "model_base.onnx", "model_weights.bin")


@dataclass(frozen=True)
class OnnxAdapter:
    """A loaded adapter as what its graphs are made of.

    Args:
        loaded: The model, its adapter with the values of its release file.
        shared: The adapter's shared state.
        config: Its configuration.
        tasks: The exported tasks, in the order of their numbers.
        update: What stands in for ``shared`` in a graph.
        metadata: Of every graph with the adapter.
    """

    loaded: LoadedAdapter
    shared: SharedAdapter
    config: HimalayaConfig
    tasks: tuple[str, ...]
    update: ExportedUpdate
    metadata: dict[str, Any]


def load_for_onnx(
    folder: Path, tasks: Sequence[str] = (), routing: Routing | None = None, backbone: str | None = None
) -> OnnxAdapter:
    """Load an adapter for export, in 32 bits and with the values of its release file.

    Args:
        folder: A run's folder, the ``adapter`` or ``release`` folder in it, or a copy of one of these.
        tasks: The tasks to export; all by default.
        routing: See `exported_update`.
        backbone: As for `load_adapter`.

    Raises:
        HimalayaError: As `load_adapter`; an unknown task; a method or placement that has no operator.
    """
    loaded = load_adapter(folder, dtype="float32", backbone=backbone)
    chosen = loaded.chosen_tasks(tasks)
    config = loaded.model.peft_config["default"]
    if not isinstance(config, HimalayaConfig):
        raise HimalayaError(
            f"{config.peft_type.value} has no ONNX operator: merge the adapter into the weights (merge_and_unload)"
        )
    if config.placement != "residual_stream":
        raise HimalayaError(
            f"placement '{config.placement}' has no ONNX operator, only 'residual_stream' has: use --format lora"
        )
    shared = loaded.model.base_model.himalaya_shared["default"]
    tables = make_tables(become_release(shared, config), config, chosen)
    metadata = {
        "tasks": list(chosen),
        "method": config.peft_type.value,
        "backbone": public_name(loaded.backbone),
        "width": str(shared.width),
    }
    return OnnxAdapter(loaded, shared, config, chosen, exported_update(tables, routing), metadata)


def export_onnx(
    folder: Path,
    output: Path,
    *,
    tasks: Sequence[str] = (),
    opset: int = DEFAULT_OPSET,
    routing: Routing | None = None,
    graphs: Sequence[Graph] = (),
    backbone: str | None = None,
) -> Parity:
    """Write an adapter as ONNX graphs, each compared with PyTorch before the folder appears.

    Args:
        folder: A run's folder, the ``adapter`` or ``release`` folder in it, or a copy of one of these.
        output: A new or empty folder.
        tasks: The tasks that the graphs know, numbered in this order; all by default.
        opset: Of the graphs.
        routing: See `exported_update`.
        graphs: Which graphs; all by default.
        backbone: As for `load_adapter`.

    Returns:
        How far each graph's outputs are from PyTorch's, by graph and output: what ``parity.json`` holds.

    Raises:
        HimalayaError: As `load_for_onnx`; an opset that is not supported; a folder that is not empty; a graph that
            computes something else than PyTorch.
    """
    check_opset(opset)
    if in_use(output):
        raise HimalayaError(IN_USE.format(output))
    adapter = load_for_onnx(folder, tasks, routing, backbone)
    with whole_folder(output) as place:
        found: Parity = {}
        for graph in graphs or GRAPHS:
            found |= WRITERS[graph](adapter, place, opset)
        for name, outputs in found.items():
            check_parity(name, outputs)
        write_json(place / PARITY_FILE, found)
    return found


def _write_adapter(adapter: OnnxAdapter, place: Path, opset: int) -> Parity:
    width = adapter.shared.width
    graph = finish(adapter_graph(adapter.update, width, opset), adapter.metadata)
    write_model(graph, place / ADAPTER_FILE)
    states = torch.randn(PARITY_TOKENS, width, generator=torch.Generator().manual_seed(0))
    return _compared(ADAPTER_FILE, place, adapter_cases(adapter.shared, adapter.tasks, states))


def _write_layer(adapter: OnnxAdapter, place: Path, opset: int) -> Parity:
    model = one_layer(adapter.loaded.model.config, adapter.config)
    with standing_in(model, adapter.update) as inner:
        graph = decoder_graph(inner, adapter.update, opset)
    write_pair(graph, adapter.metadata, place, LAYER_FILES)
    states = torch.randn(1, PARITY_TOKENS, adapter.shared.width, generator=torch.Generator().manual_seed(0))
    return _decoder_parity(adapter, model, place, states, LAYER_FILES)


def _write_model(adapter: OnnxAdapter, place: Path, opset: int) -> Parity:
    model = adapter.loaded.model
    with standing_in(model, adapter.update) as inner:
        graph = decoder_graph(inner, adapter.update, opset)
    write_pair(graph, adapter.metadata, place, MODEL_FILES)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, PARITY_TOKENS), generator=generator)
    return _decoder_parity(adapter, model, place, tokens, MODEL_FILES)


WRITERS: dict[Graph, Callable[[OnnxAdapter, Path, int], Parity]] = {
    "adapter": _write_adapter,
    "layer": _write_layer,
    "model": _write_model,
}
GRAPHS: tuple[Graph, ...] = tuple(WRITERS)


def write_pair(graph: ir.Model, metadata: Mapping[str, Any], place: Path, files: DecoderFiles) -> None:
    """Write a decoder's graph with the adapter and without it, on one file of weights."""
    write_model(finish(graph, metadata), place / files.adapted, files.weights)
    base = without_adapter(ir.load(place / files.adapted))  # its large tensors stay in the file of weights
    write_model(finish(base, {"backbone": metadata["backbone"]}), place / files.base)


def _decoder_parity(
    adapter: OnnxAdapter, model: PeftModel, place: Path, inputs: torch.Tensor, files: DecoderFiles
) -> Parity:
    names = ("input_ids", "logits") if inputs.dim() == 2 else ("inputs_embeds", "hidden_states")
    with standing_in(model, adapter.shared) as inner:
        tasks = adapter.tasks
        cases = decoder_cases(inner, len(tasks), inputs, names, lambda row: adapter.shared.set_task(tasks[row]))
    found = _compared(files.adapted, place, cases)
    with model.disable_adapter():
        cases = decoder_cases(model, 2, inputs, names, lambda row: None)
    return found | {files.base: compare(open_session(place / files.base), cases)}


def _compared(file: str, place: Path, cases: Sequence[Case]) -> Parity:
    """The parity of a graph and of its copy without functions, which is written here."""
    write_function_free(place / file, place / function_free(file))
    return {name: compare(open_session(place / name), cases) for name in (file, function_free(file))}
