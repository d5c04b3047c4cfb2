"""Where and with what a run was made."""

import importlib.metadata
import platform
import resource
import sys
from typing import Any

import torch
from accelerate import PartialState

from himalaya_adapter.backbones import Backbone
from himalaya_adapter.backbones.shape import sizes_of
from himalaya_adapter.identity import SCORING, task_identity
from himalaya_adapter.streams import Stream

PACKAGES = ("himalaya-adapter", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def describe_environment(seed: int, stream: Stream, backbone: Backbone) -> dict[str, Any]:
    """Versions, processor, seed, tasks, hashes of all data: what another machine needs to get the same numbers."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor_name(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "processes": PartialState().num_processes,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "backbone_revision": backbone.revision,
        "backbone_sizes": sizes_of(backbone.model.config),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "seed": seed,
        "scoring": SCORING,
        "tasks": {task.name: task_identity(task) for task in stream.tasks},
        "data_hashes": {task.name: dict(task.hashes) for task in stream.tasks},
    }


def processor_name() -> str:
    """The processor's model as the system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """The most memory this process has held: on the accelerator if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
