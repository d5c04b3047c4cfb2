"""One plain PEFT LoRA per task, for servers that know LoRA only: what a task has learnt in the weights, exactly."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from peft import LoraConfig, PeftModel, TaskType
from safetensors.torch import save_file

from himalaya_adapter.backbones.catalogue import public_name
from himalaya_adapter.deploy.adapter_folder import load_for_export
from himalaya_adapter.methods.himalaya import HashedLinear
from himalaya_adapter.methods.release import WEIGHTS_FILE
from himalaya_adapter.storage import whole_folder

INNER = "base_model.model."  # what PEFT puts before a module's name


def export_lora(folder: Path, output: Path, tasks: Sequence[str] = (), backbone: str | None = None) -> list[Path]:
    """Write the LoRA that each task of a HIMALAYA adapter with ``placement="weights"`` is.

    Args:
        folder: A run's folder, the ``adapter`` or ``release`` folder in it, or a copy of one of these.
        output: A new or empty folder; it gets one folder for each task, of the task's name as in a web address.
        tasks: Which tasks; all that the adapter has learnt by default.
        backbone: As for `load_adapter`.

    Returns:
        The folders of the LoRAs.

    Raises:
        HimalayaError: As `load_for_export`; a folder that is not empty.
    """
    with whole_folder(output) as place:
        adapter = load_for_export(folder, tasks, "weights", backbone)
        # "." and ".." are no names of folders.
        names = [quote(task, safe=" ") if task.strip(".") else task.replace(".", "%2E") for task in adapter.tasks]
        for task, name in zip(adapter.tasks, names, strict=True):
            adapter.model.set_task(task)
            _write_lora(place / name, adapter.model, public_name(adapter.backbone))
    return [output / name for name in names]


def _write_lora(folder: Path, model: PeftModel, backbone: str) -> None:
    """Write what the model answers as now as a plain PEFT LoRA."""
    active, factors = model.active_adapter, {}
    for name, layer in model.named_modules():
        if isinstance(layer, HashedLinear):
            (factors[name],) = layer.factors(active)
    rank = model.peft_config[active].rank
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # the factors are the whole update
        target_modules=sorted(name.removeprefix(INNER) for name in factors),
        base_model_name_or_path=backbone,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
    )
    state = {
        f"{name}.lora_{part}.weight": factor.detach().float().cpu().contiguous()
        for name, pair in factors.items()
        for part, factor in zip("AB", pair, strict=True)
    }
    folder.mkdir()
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
