"""The adapter's overhead in ONNX Runtime on this machine, as ``himalaya latency`` measures it."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from himalaya_adapter.deploy.adapter_folder import IN_A_RUN
from himalaya_adapter.deploy.bundle.runner.graph import Array
from himalaya_adapter.deploy.bundle.runner.latency import BASE, measure
from himalaya_adapter.deploy.bundle.runner.measure import device
from himalaya_adapter.deploy.graph_pairs import backbone_pair, layer_pair
from himalaya_adapter.deploy.neutral_prompt import neutral_prompt
from himalaya_adapter.deploy.onnx.export import load_for_onnx
from himalaya_adapter.deploy.quantisation import PRECISIONS, quantise, save_sharing, tensor_hashes
from himalaya_adapter.errors import HimalayaError, unknown_name

ADAPTED = "adapted"
NO_PROMPT: Array = np.zeros(0, np.int64)  # a layer takes embeddings


def measure_latency(
    adapter: Path | None,
    shape: str,
    precisions: Sequence[str],
    threads: int | None,
    seconds: float,
    backbone: str | None = None,
) -> dict[str, Any]:
    """Time a decoder with the adapter against the same without it.

    Args:
        adapter: An adapter's folder (`load_for_onnx`): its whole backbone is measured. Without it, one decoder layer.
        shape: The layer's backbone (`layer_pair`).
        precisions: Of the base's weights, names of `PRECISIONS`.
        threads: Threads of one operator; by default as many as the process may use CPUs.
        seconds: About how long the rounds of one phase and precision take.
        backbone: As for `load_adapter`.

    Returns:
        ``subject``, ``device``, the names of the ``graphs`` with the adapter, and the ``measurements``
        (`measure_graphs`).

    Raises:
        HimalayaError: An unknown precision or shape; numbers that make no sense; no finished run.
    """
    for name in precisions:
        if name not in PRECISIONS:
            raise unknown_name("precision", name, PRECISIONS)
    if threads is not None and threads < 1:
        raise HimalayaError(f"--threads {threads}: expected a whole number of at least 1")
    if not seconds > 0:
        raise HimalayaError(f"--seconds {seconds:g}: expected a number above 0")
    if adapter is None:
        pair, prompt = layer_pair(shape), NO_PROMPT
        subject = f"one decoder layer of {Path(shape).name}, random weights"
    else:
        loaded = load_for_onnx(adapter, backbone=backbone)
        pair, prompt = backbone_pair(loaded), neutral_prompt(loaded.loaded.tokenizer)
        folder = loaded.loaded.folder
        name = f"of the run {folder.parent.name}" if folder.name in IN_A_RUN else f"in {folder.name}"
        subject = f"{loaded.metadata['backbone']} with the adapter {name}"
    graphs = {BASE: pair.base, ADAPTED: pair.adapted}
    return {
        "subject": subject,
        "device": device(),
        "graphs": [ADAPTED],
        "measurements": measure_graphs(graphs, prompt, precisions, threads or _cpus(), seconds),
    }


def measure_graphs(
    graphs: Mapping[str, onnx.ModelProto],
    prompt: Array,
    precisions: Sequence[str],
    threads: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Time graphs with the adapter against the one without it (`runner.latency.measure`), at each precision.

    Args:
        graphs: By name; ``base`` is the one without the adapter.
        prompt: Token ids ``(n,)`` of a whole backbone's steps.
        precisions: Of the base's weights, names of `PRECISIONS`.
        threads: Threads of one operator.
        seconds: About how long the rounds of one phase take.
    """
    weights = tensor_hashes(graphs[BASE])
    measured = []
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: Path(folder) / f"{name}.onnx" for name in graphs}
            quantised = {paths[name]: quantise(model, precision, weights) for name, model in graphs.items()}
            save_sharing(quantised, Path(folder) / "weights.bin")
            del quantised
            measured += [{"precision": precision, **entry} for entry in measure(paths, prompt, threads, seconds)]
    return measured


def _cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
