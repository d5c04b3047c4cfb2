"""What a run config says about its stream and its machine, held against those that are there."""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor

from himalaya_adapter.backbones import Backbone
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import context_of
from himalaya_adapter.experiments.method_options import method_of
from himalaya_adapter.experiments.run_config import DatasetConfig, HardwareConfig, RunConfig
from himalaya_adapter.methods.himalaya import HimalayaConfig
from himalaya_adapter.streams import Stream
from himalaya_adapter.training.environment import processor_name
from himalaya_adapter.training.protocols import FROZEN, protocol_of

logger = logging.getLogger(__name__)
ANY_LANGUAGE = "multi"
BYTES_PER_GB = 1_000_000_000


def check_stream(dataset: DatasetConfig, stream: Stream) -> None:
    """Refuse a stream that is not what ``dataset.num_tasks`` and ``dataset.languages`` expect.

    Raises:
        HimalayaError: As said; the message names both sides.
    """
    expected, found = dataset.num_tasks, len(stream.tasks)
    if expected not in (None, found):
        raise HimalayaError(
            f"dataset.num_tasks={expected}: stream {stream.name} has {found} tasks; "
            f"dataset.num_tasks={found} or null runs it"
        )
    # ``en-de`` is English and German, ``pt-BR`` Portuguese.
    parts = {part for task in stream.tasks for part in task.spec.language.split("-") if part.islower()}
    declared = set(parts if dataset.languages is None else dataset.languages)
    wanted = declared - {ANY_LANGUAGE}
    if not (wanted <= parts if ANY_LANGUAGE in declared else wanted == parts):
        there = ", ".join(sorted(parts))
        raise HimalayaError(
            f"dataset.languages=[{', '.join(sorted(declared))}]: the tasks of stream {stream.name} are in "
            f"[{there}]; dataset.languages=[{there}] or null runs it"
        )


def check_backbone(max_seq_length: int, backbone: Backbone) -> None:
    """Refuse examples that are longer than the backbone's context.

    Raises:
        HimalayaError: As said.
    """
    context = context_of(backbone.model)
    if max_seq_length > context:
        raise HimalayaError(
            f"dataset.max_seq_length={max_seq_length}: {backbone.name} reads "
            f"at most {context} tokens; expected a whole number up to that"
        )


@torch.no_grad()
def frozen_logits(model: Any) -> Tensor:
    """What a model answers to a few tokens, ``(1, 8, vocabulary)``."""
    logits: Tensor = model(input_ids=torch.arange(8, device=model.device)[None], use_cache=False).logits
    return logits


def check_start(model: PeftModel, bare: Tensor) -> None:
    """Refuse an adapter with which the frozen model is no longer the backbone: its scores would be another model's.

    Args:
        model: The backbone with its adapter.
        bare: The backbone's `frozen_logits`.

    Raises:
        HimalayaError: As said.
    """
    with model.disable_adapter():
        frozen = frozen_logits(model)
    if not torch.allclose(frozen, bare, equal_nan=True):
        raise HimalayaError(
            "model.adapter.options change the backbone itself, as init_lora_weights=pissa and layer_replication do: "
            "expected options that leave its weights and layers as they are"
        )


def check_tracker(tracker: str) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        HimalayaError: As said; the message says how to install it.
    """
    if tracker != "none" and find_spec(tracker) is None:
        raise HimalayaError(f"training.report_to={tracker} needs the package {tracker}: pip install {tracker}")


def check_latency(run: RunConfig, adapter: PeftConfig) -> None:
    """Refuse a run that would miss what measures latency; say on which machine it is measured, or why it is not.

    Raises:
        HimalayaError: As said; the message says how to install it.
    """
    metric, planned = run.evaluation.secondary_metric, run.evaluation.cpu_latency_device
    if metric is None:
        return
    why = without_latency(run, adapter)
    if why is not None:
        logger.warning("%s is not measured: %s", metric, why)
    elif find_spec("onnxruntime") is None:
        raise HimalayaError("evaluation.secondary_metric needs onnxruntime: pip install 'himalaya-adapter[deploy]'")
    elif planned is not None:
        logger.warning("%s is that of this machine (%s), not of %s", metric, processor_name(), planned)


def without_latency(run: RunConfig, adapter: PeftConfig) -> str | None:
    """Why the latency of a run's adapter cannot be measured, if it cannot: it has to become an ONNX graph."""
    if protocol_of(run) == FROZEN:
        return "a frozen model has no adapter"
    if not isinstance(adapter, HimalayaConfig):
        return f"an adapter of {method_of(run)} has no ONNX graph"
    return None if adapter.placement == "residual_stream" else "placement='weights' has no ONNX graph"


def announce(hardware: HardwareConfig, *, searches: bool) -> None:
    """Say which keys of the run cannot be followed here: a smaller machine, and what only a search varies."""
    if hardware.gpu_type is not None or hardware.max_gpu_mem_gb is not None:
        cuda = torch.cuda.is_available()
        there = torch.cuda.get_device_properties(0).total_memory / BYTES_PER_GB if cuda else 0.0
        if not cuda or there < (hardware.max_gpu_mem_gb or 0.0):
            planned = f"{hardware.gpu_type or 'a GPU'} with {hardware.max_gpu_mem_gb or '?'} GB"
            logger.warning("planned for %s; this machine has %.0f GB of GPU memory, which may not do", planned, there)
    if searches:
        logger.warning("optuna: one run with the values as they are; `himalaya search` varies them")
