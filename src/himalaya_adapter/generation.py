"""A finished run's model, ready to answer as one of its tasks."""

from pathlib import Path
from typing import Any

import yaml
from peft import PeftModel
from safetensors import SafetensorError

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.storage import read_json


def load_run(folder: Path, task: str) -> tuple[Any, PeftModel]:
    """Load the backbone and the adapter of a run and switch to one of its tasks.

    Args:
        folder: A run's folder, or the ``adapter`` or ``release`` folder inside it; ``adapter`` is the default.
        task: Name of a task that the run has learned.

    Returns:
        The tokenizer and the model, in evaluation mode.

    Raises:
        HimalayaError: No finished run there, a task that it has not learned, or a damaged adapter.
    """
    run, name = (folder.parent, folder.name) if folder.name in ("adapter", "release") else (folder, "adapter")
    adapter = run / name
    if not adapter.is_dir() or not (run / "metrics.json").is_file():
        raise HimalayaError(f"{folder} is not a finished run: it has no {name}/ beside metrics.json")
    if not (adapter / "adapter_model.safetensors").is_file():  # PEFT would look for a pickled file next
        raise HimalayaError(f"the adapter in {adapter} has lost its file adapter_model.safetensors")
    tasks = [entry["name"] for entry in read_json(run / "metrics.json")["tasks"]]
    if task not in tasks:
        raise unknown_name("task", task, tasks)
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]["backbone"]
    backbone = load_backbone(
        written["name"], quantisation="4-bit" if written["quantisation"] else None, dtype=written["dtype"]
    )
    try:
        model = PeftModel.from_pretrained(backbone.model, adapter).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise HimalayaError(f"the adapter in {adapter} could not be loaded: {reason}") from error
    if hasattr(model, "set_task"):
        model.set_task(task)
    return backbone.tokenizer, model
