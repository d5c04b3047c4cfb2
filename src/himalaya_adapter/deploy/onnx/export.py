"""A run's adapter as ONNX graphs in a folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnx_ir as ir
import torch

from himalaya_adapter.backbones.catalogue import public_name
from himalaya_adapter.deploy.adapter_folder import LoadedAdapter, load_adapter
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya import HimalayaAdapter, HimalayaConfig
from himalaya_adapter.storage import IN_USE, in_use, whole_folder, write_json

from .decoder_graph import decoder_graph, standing_in, without_adapter
from .parity import Case, check_parity, compare, decoder_cases, open_session
from .update import ExportedUpdate, vectors_cases, vectors_graph
from .writing import METADATA_PREFIX, check_opset, finish, function_free, write_function_free, write_model

DEFAULT_OPSET = 18
PARITY_FILE, ADAPTER_FILE = "parity.json", "adapter.onnx"
PARITY_TOKENS = 64

Graph = Literal["adapter", "model"]
Parity = dict[str, dict[str, dict[str, float]]]


class PairFiles(NamedTuple):
    """Names of a graph with the adapter, of the same without it, and of the file with the weights of both."""

    adapted: str
    base: str
    weights: str


FILES = PairFiles("model.onnx", "model_base.onnx", "model_weights.bin")


@dataclass(frozen=True)
class OnnxAdapter:
    """A loaded adapter as what its graphs are made of.

    Args:
        loaded: The model.
        shared: The adapter's shared state.
        tasks: The exported tasks, in the order of their numbers.
        update: What stands in for ``shared`` in a graph.
        metadata: Of every graph with the adapter.
    """

    loaded: LoadedAdapter
    shared: HimalayaAdapter
    tasks: tuple[str, ...]
    update: ExportedUpdate
    metadata: dict[str, Any]


def load_for_onnx(folder: Path, tasks: Sequence[str] = (), backbone: str | None = None) -> OnnxAdapter:
    """Load an adapter for export, in 32 bits.

    Args:
        folder: A run's folder, the ``adapter`` or ``release`` folder in it, or a copy of one of these.
        tasks: The tasks to export; all by default.
        backbone: As for `load_adapter`.

    Raises:
        HimalayaError: As `load_adapter`; an unknown task; a method or placement that has no operator.
    """
    loaded = load_adapter(folder, dtype="float32", backbone=backbone)
    config = loaded.model.peft_config["default"]
    if not isinstance(config, HimalayaConfig):
        raise HimalayaError(
            f"an adapter of {config.peft_type.value} has no ONNX operator, only one of HIMALAYA has; "
            "merge_and_unload() merges what can be merged"
        )
    if config.placement != "residual_stream":
        raise HimalayaError(
            f"placement '{config.placement}' has no ONNX operator and needs none: write it as a LoRA "
            "(--format lora), or merge it into the weights (merge_and_unload)"
        )
    chosen = loaded.chosen_tasks(tasks)
    shared = loaded.model.base_model.himalaya_shared["default"]
    metadata = {
        "tasks": list(chosen),
        "method": config.peft_type.value,
        "backbone": public_name(loaded.backbone),
        "width": str(shared.width),
    }
    return OnnxAdapter(loaded, shared, chosen, ExportedUpdate(shared, chosen), metadata)


def export_onnx(
    folder: Path,
    output: Path,
    *,
    tasks: Sequence[str] = (),
    opset: int = DEFAULT_OPSET,
    graphs: Sequence[Graph] = (),
    backbone: str | None = None,
) -> Parity:
    """Write an adapter as ONNX graphs, each compared with PyTorch before the folder appears.

    Args:
        folder: A run's folder, the ``adapter`` or ``release`` folder in it, or a copy of one of these.
        output: A new or empty folder.
        tasks: The tasks that the graphs know, numbered in this order; all by default.
        opset: Of the graphs.
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
    adapter = load_for_onnx(folder, tasks, backbone)
    with whole_folder(output) as place:
        found: Parity = {}
        for graph in graphs or GRAPHS:
            found |= WRITERS[graph](adapter, place, opset)
        for name, outputs in found.items():
            check_parity(name, outputs)
        write_json(place / PARITY_FILE, found)
    return found


def _write_adapter(adapter: OnnxAdapter, place: Path, opset: int) -> Parity:
    write_model(finish(vectors_graph(adapter.update, opset), adapter.metadata), place / ADAPTER_FILE)
    return _compared(ADAPTER_FILE, place, vectors_cases(adapter.shared, adapter.tasks))


def _write_model(adapter: OnnxAdapter, place: Path, opset: int) -> Parity:
    model, tasks = adapter.loaded.model, adapter.tasks
    with standing_in(model, adapter.update) as inner:
        graph = decoder_graph(inner, adapter.update, opset)
    write_pair(finish(graph, adapter.metadata), place, FILES)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, PARITY_TOKENS), generator=generator)
    names = ("input_ids", "logits")
    found = _compared(
        FILES.adapted, place, decoder_cases(model, len(tasks), tokens, names, lambda row: model.set_task(tasks[row]))
    )
    with model.disable_adapter():
        cases = decoder_cases(model, 2, tokens, names, lambda row: None)
    return found | {FILES.base: compare(open_session(place / FILES.base), cases)}


WRITERS: dict[Graph, Callable[[OnnxAdapter, Path, int], Parity]] = {"adapter": _write_adapter, "model": _write_model}
GRAPHS: tuple[Graph, ...] = tuple(WRITERS)


def write_pair(adapted: ir.Model, place: Path, files: PairFiles) -> None:
    """Write a finished graph of a decoder with the adapter, and the same without it, on one file of weights."""
    write_model(adapted, place / files.adapted, files.weights)
    base = without_adapter(ir.load(place / files.adapted))  # its large tensors stay in the file of weights
    backbone = adapted.metadata_props[f"{METADATA_PREFIX}backbone"]
    write_model(finish(base, {"backbone": backbone}), place / files.base)


def _compared(file: str, place: Path, cases: Sequence[Case]) -> Parity:
    """The parity of a graph and of its copy without functions, which is written here."""
    write_function_free(place / file, place / function_free(file))
    return {name: compare(open_session(place / name), cases) for name in (file, function_free(file))}
