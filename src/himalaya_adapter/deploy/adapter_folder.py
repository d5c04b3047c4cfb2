"""A finished run's model, ready to answer as its tasks."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.storage import read_json


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter on its backbone.

    Args:
        model: Backbone and adapter, in evaluation mode.
        tokenizer: The backbone's tokenizer.
        tasks: Names of the tasks that the adapter has learnt, in their order.
        backbone: The name under which `load_backbone` finds the backbone.
        folder: Where the adapter's files lie.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    tasks: tuple[str, ...]
    backbone: str
    folder: Path


def load_adapter(folder: Path, *, task: str | None = None, dtype: str | None = None) -> LoadedAdapter:
    """Load the backbone and the adapter of a run.

    Args:
        folder: A run's folder, or the ``adapter`` or ``release`` folder inside it; ``adapter`` is the default.
        task: The task to switch to, if the method knows tasks; later calls of ``model.set_task`` switch again.
        dtype: Precision of the backbone; that of the run by default.

    Raises:
        HimalayaError: No finished run there, a task that it has not learned, or a damaged adapter.
    """
    run, name = (folder.parent, folder.name) if folder.name in ("adapter", "release") else (folder, "adapter")
    adapter = run / name
    if not adapter.is_dir() or not (run / "metrics.json").is_file():
        raise HimalayaError(f"{folder} is not a finished run: it has no {name}/ beside metrics.json")
    if not (adapter / "adapter_model.safetensors").is_file():  # PEFT would look for a pickled file next
        raise HimalayaError(f"the adapter in {adapter} has lost its file adapter_model.safetensors")
    tasks = tuple(entry["name"] for entry in read_json(run / "metrics.json")["tasks"])
    if task is not None and task not in tasks:
        raise unknown_name("task", task, tasks)
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]["backbone"]
    quantisation = "4-bit" if written["quantisation"] else None
    backbone = load_backbone(written["name"], quantisation=quantisation, dtype=dtype or written["dtype"])
    try:
        model = PeftModel.from_pretrained(backbone.model, adapter).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise HimalayaError(f"the adapter in {adapter} could not be loaded: {reason}") from error
    if task is not None and hasattr(model, "set_task"):
        model.set_task(task)
    return LoadedAdapter(model, backbone.tokenizer, tasks, written["name"], adapter)
