"""The folder of an exported LoRA: a plain PEFT adapter and a model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from peft import LoraConfig, PeftModel, TaskType
from safetensors.torch import save_file
from torch import nn

from himalaya_adapter.deploy.lora_fit import Fit
from himalaya_adapter.methods.release import WEIGHTS_FILE

EXACT = "It equals the adapter with frozen routing, `freeze_routing({task!r})`, exactly: ΔW = γ r rᵀ has rank 1."
FITTED = (
    "It is a fit: HIMALAYA's update on the residual stream has no weight to be written into. Its output directions "
    "are exact; its inputs were fitted on training items (share of the update explained on held-out ones: "
    "{explained:.3f})."
)
CARD = """# {task}: a LoRA made from a HIMALAYA adapter

A LoRA of rank {rank} for `{backbone}`, task `{task}`. {what}

| adapter | {metric} on {n} items of the {split} split |
|---|---|
| HIMALAYA, routing per token | {routed:.3f} |
| HIMALAYA, routing frozen | {frozen:.3f} |
| this LoRA | {lora:.3f} |

It loads with `peft.PeftModel.from_pretrained(model, FOLDER)`, without `himalaya-adapter`.
"""


def write_lora(folder: Path, fits: Sequence[Fit], model: PeftModel, backbone: str) -> None:
    """Write the two files of a plain PEFT LoRA, with scaling 1.

    Args:
        folder: A new folder.
        fits: The LoRA of each module, all of one rank.
        model: The adapted model that the modules are of.
        backbone: Its backbone's name.
    """
    rank = len(fits[0].down)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_target_modules(model, [fit.module for fit in fits]),
        base_model_name_or_path=backbone,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
    )
    state = {}
    for fit in fits:
        state[f"base_model.model.{fit.module}.lora_A.weight"] = fit.down.float().cpu().contiguous()
        state[f"base_model.model.{fit.module}.lora_B.weight"] = fit.up.float().cpu().contiguous()
    folder.mkdir()
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _target_modules(model: PeftModel, adapted: Sequence[str]) -> list[str]:
    """Names of a LoRA's targets: the last parts, as other servers want them, where those match no other module."""
    short = {name.rpartition(".")[2] for name in adapted}
    linear = [
        name.removeprefix("base_model.model.").replace(".base_layer", "")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    matched = [name for name in linear if name.rpartition(".")[2] in short]
    return sorted(short) if sorted(matched) == sorted(adapted) else sorted(adapted)


def write_card(folder: Path, backbone: str, scores: dict[str, Any], explained: float | None) -> None:
    """Write the model card: what the LoRA is, whether it is exact, and its scores.

    Args:
        folder: The LoRA's folder.
        backbone: The backbone's name.
        scores: The fields that the card names.
        explained: Mean share of the update explained; ``None`` if the LoRA is exact.
    """
    what = EXACT.format(task=scores["task"]) if explained is None else FITTED.format(explained=explained)
    data = ModelCardData(library_name="peft", tags=["lora", "himalaya-adapter"])
    if "/" in backbone:  # the hub refuses a card with another name
        data.base_model = backbone
    text = CARD.format(**scores, backbone=backbone, what=what)
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")
