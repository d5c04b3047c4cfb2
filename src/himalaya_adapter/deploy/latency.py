"""The adapter's overhead in ONNX Runtime on this machine, as ``himalaya latency`` measures it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from himalaya_adapter.backbones.catalogue import public_name
from himalaya_adapter.backbones.shape import backbone_shape
from himalaya_adapter.deploy.bundle.runner.latency import cpus, device, measure
from himalaya_adapter.deploy.neutral_prompt import neutral_prompt
from himalaya_adapter.deploy.onnx.decoder_graph import decoder_graph
from himalaya_adapter.deploy.onnx.export import load_for_onnx, whole_graph, write_pair
from himalaya_adapter.deploy.onnx.layer import TASK, one_layer
from himalaya_adapter.deploy.quantisation import PRECISIONS
from himalaya_adapter.errors import unknown_name


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
        adapter: An adapter's folder (`load_for_onnx`): its whole backbone is measured. Without it, one decoder layer
            with random weights.
        shape: The layer's backbone (`backbone_shape`).
        precisions: Of the base's weights, names of `PRECISIONS`.
        threads: Threads of one operator; by default as many as the process may use CPUs.
        seconds: About how long the rounds of one phase and precision take.
        backbone: As for `load_adapter`.

    Returns:
        ``subject``, ``device`` and the ``measurements`` (`runner.latency.measure`).

    Raises:
        HimalayaError: An unknown precision or shape; no adapter that can be exported.
    """
    for name in precisions:
        if name not in PRECISIONS:
            raise unknown_name("precision", name, PRECISIONS)
    if adapter is None:
        name, prompt = Path(shape).name, [0]
        graph = decoder_graph(one_layer(backbone_shape(shape)), [TASK], {"backbone": name})
        subject = f"one decoder layer of {name}, random weights"
    else:
        whole = load_for_onnx(adapter, backbone=backbone)
        graph, prompt = whole_graph(whole), neutral_prompt(whole.tokenizer)
        subject = f"{public_name(whole.backbone)} with the adapter in {adapter.resolve().name}"
    measured = []
    for precision in precisions:
        with tempfile.TemporaryDirectory() as place:
            base, adapted = write_pair(graph, Path(place), precision)
            measured += measure(base, adapted, precision, prompt, threads or cpus(), seconds)
    return {"subject": subject, "device": device(), "measurements": measured}
