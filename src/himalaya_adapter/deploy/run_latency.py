"""The secondary metric of a run: what its adapter costs on the CPU of the machine that the run ends on."""

import logging
from pathlib import Path

import torch

from himalaya_adapter.backbones.shape import ShapeMode, empty_backbone
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.identity import opened, sealed
from himalaya_adapter.methods.construction import run_method
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.training.preconditions import without_latency

logger = logging.getLogger(__name__)
KEY = "cpu_latency_overhead"
PHASE = "decode"  # one token after 128
SECONDS = 10.0  # of the rounds of each phase
# Parameters of a backbone that is measured whole: two graphs of it in 32 bits have to be made.
LARGEST = 1_000_000_000


def measure_secondary_metric(run: RunConfig, folder: Path) -> bool:
    """Measure ``cpu_latency_overhead`` of a finished run whose config names it, and write it into ``metrics.json``.

    One thread, weights in 32 bits. Of a backbone of more than 10^9 parameters one decoder layer is measured, with
    random weights. What was measured before is left as it is.

    Args:
        run: The run.
        folder: Its folder.

    Returns:
        Whether something was measured, so that an older report no longer says all.
    """
    if run.evaluation.secondary_metric != KEY or without_latency(run, run_method(run)) is not None:
        return False
    metrics = opened(read_json(folder / "metrics.json"))
    if KEY in metrics:
        return False
    from .latency import measure_latency  # ONNX is an extra of the package

    backbone = run.model.backbone.name
    parameters = empty_backbone(backbone, torch.float32, ShapeMode()).num_parameters()
    logger.info("measuring %s of %s", KEY, folder)
    try:
        found = measure_latency(folder if parameters <= LARGEST else None, backbone, ["fp32"], 1, SECONDS)
    except HimalayaError as error:  # such as a backbone that has no graph: the run is finished all the same
        logger.warning("%s is not measured: %s", KEY, error)
        return False
    (step,) = (entry["graphs"]["adapted"] for entry in found["measurements"] if entry["phase"] == PHASE)
    low, high = step["interval"]
    metrics |= {KEY: step["ratio"] - 1, f"{KEY}_low": low - 1, f"{KEY}_high": high - 1}
    write_json(folder / "metrics.json", sealed(metrics | {"cpu_latency": found}))
    return True
