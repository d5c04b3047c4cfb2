"""Folders of adapters that have learnt tasks at random, in no time."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from tiny_runs import TASKS
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, PreTrainedModel

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.methods.himalaya.update import unscaled


def learn(model: PreTrainedModel, names: tuple[str, ...] = TASKS, **config: Any) -> PeftModel:
    """A model with an adapter that answers as each task, otherwise as each."""
    adapted = get_peft_model(model, HimalayaConfig(task_type="CAUSAL_LM", **config)).eval()
    atoms = adapted.base_model.himalaya_shared["default"].atoms
    generator = torch.Generator().manual_seed(0)
    for name in names:
        adapted.start_task(name)
        atoms.data.copy_(unscaled(0.9 * normalize(torch.randn(atoms.shape, generator=generator), dim=1)))
        adapted.end_task()
    return adapted


def write_learnt(folder: Path, backbone: Path, **config: Any) -> Path:
    """The folder of such an adapter on the model in the folder ``backbone``."""
    learn(AutoModelForCausalLM.from_pretrained(backbone), **config).save_pretrained(folder)
    return folder
