"""The adapter's overhead in ONNX Runtime on this machine, as ``himalaya latency`` measures it."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from himalaya_adapter.deploy.adapter_folder import IN_A_RUN
from himalaya_adapter.deploy.bundle.runner.graph import Array
from himalaya_adapter.deploy.bundle.runner.latency import measure
from himalaya_adapter.deploy.bundle.runner.measure import cpus, device
from himalaya_adapter.deploy.graph_pairs import backbone_graph, layer_graph, write_graphs
from himalaya_adapter.deploy.neutral_prompt import neutral_prompt
from himalaya_adapter.deploy.onnx.export import load_for_onnx
from himalaya_adapter.deploy.quantisation import PRECISIONS
from himalaya_adapter.errors import HimalayaError, unknown_name

MOST_THREADS = 1024
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
        shape: The layer's backbone (`layer_graph`).
        precisions: Of the base's weights, names of `PRECISIONS`.
        threads: Threads of one operator; by default as many as the process may use CPUs.
        seconds: About how long the rounds of one phase and precision take.
        backbone: As for `load_adapter`.

    Returns:
        ``subject``, ``device``, the names of the ``graphs`` with the adapter, and the ``measurements``
        (`runner.latency.measure`), at each precision.

    Raises:
        HimalayaError: An unknown precision or shape; numbers that make no sense; no finished run.
    """
    for name in precisions:
        if name not in PRECISIONS:
            raise unknown_name("precision", name, PRECISIONS)
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise HimalayaError(f"--threads {threads}: expected a whole number from 1 to {MOST_THREADS}")
    if not 0 < seconds < math.inf:
        raise HimalayaError(f"--seconds {seconds:g}: expected a number above 0")
    if adapter is None:
        graph, prompt = layer_graph(shape), NO_PROMPT
        subject = f"one decoder layer of {Path(shape).name}, random weights"
    else:
        loaded = load_for_onnx(adapter, backbone=backbone)
        graph, prompt = backbone_graph(loaded), neutral_prompt(loaded.loaded.tokenizer)
        folder = loaded.loaded.folder
        name = f"of the run {folder.parent.name}" if folder.name in IN_A_RUN else f"in {folder.name}"
        subject = f"{loaded.metadata['backbone']} with the adapter {name}"
    measured = []
    for precision in precisions:
        with tempfile.TemporaryDirectory() as place:
            paths = write_graphs(graph, precision, Path(place))
            taken = measure(paths, prompt, threads or cpus(), seconds)
        measured += [{"precision": precision, **entry} for entry in taken]
    return {"subject": subject, "device": device(), "graphs": ["adapted"], "measurements": measured}
