"""Adapter files: the small one for inference, and what is checked before anything is loaded (docs/deployment.md)."""

import copy
import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.identity import config_identity, digest
from himalaya_adapter.storage import read_json, write_atomic

CHECKSUM = "checksum"
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "README.md"
TASKS_FILE = "tasks.json"  # what `himalaya learn` says of each task, and of the backbone, beside the adapter
CARD_FACTS = "himalaya"  # key of the card's front matter under which a run says what the adapter has learnt
INFERENCE_ONLY = "a release file is for inference only: to train on, load the adapter that it was made from"

Tensors = Mapping[str, Tensor]
logger = logging.getLogger(__name__)


def has_release(config: PeftConfig) -> bool:
    """Whether the method of an adapter's config has a release file: such configs say which kind a file is."""
    return hasattr(config, "released")


def save_release(
    model: PeftModel,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    base_model: str | None = None,
    revision: str | None = None,
) -> dict[str, int]:
    """Write a small file for inference: weights in `quantisation_bits` bits, no training state.

    `peft.PeftModel.from_pretrained` opens the folder. ``model`` itself stays as it is, and can be trained on.

    Args:
        model: A model with an adapter of a method that has a release file: HIMALAYA, LILAC.
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` are written; made if needed.
        adapter_name: Which of the model's adapters.
        base_model: What the frozen model is called where the release goes; by default its name in the catalogue, its
            hub id, or the folder that it was loaded from. PEFT's card, which would name a folder too, is left out.
        revision: What exactly that model is.

    Returns:
        The bytes of each part of ``adapter_model.safetensors``; with ``header`` they add up to the file's size.

    Raises:
        HimalayaError: No such adapter, an adapter of another method or with values that are not finite, or a folder
            that holds an adapter which can be trained on.
    """
    folder = Path(folder)
    if adapter_name not in model.peft_config:
        raise unknown_name("adapter", adapter_name, model.peft_config)
    config = model.peft_config[adapter_name]
    if not has_release(config):
        raise HimalayaError(f"adapter '{adapter_name}' is of method {config.peft_type.value}: it has no release file")
    if (folder / CONFIG_FILE).is_file() and not read_json(folder / CONFIG_FILE).get("released"):
        raise HimalayaError(f"{folder} holds an adapter that can be trained on: choose another folder for the release")
    released: Any = copy.copy(config)
    released.released = True
    model.peft_config[adapter_name] = released  # for as long as PEFT saves
    try:
        with tempfile.TemporaryDirectory() as temporary:
            model.save_pretrained(temporary, selected_adapters=[adapter_name])
            files = {path.name: path.read_bytes() for path in Path(temporary).rglob("*") if path.is_file()}
        told = json.loads(files[CONFIG_FILE])
        if base_model is not None:  # the revision was that of another place
            told |= {"base_model_name_or_path": base_model, "revision": None}
        told["revision"] = revision or told["revision"]
        files[CONFIG_FILE] = json.dumps(told, indent=2, sort_keys=True).encode()
        del files[CARD_FILE]
        for name in sorted(files, reverse=True):  # the weights before the config
            write_atomic(folder / name, files[name])
    finally:
        model.peft_config[adapter_name] = config
    return file_bytes(folder / WEIGHTS_FILE, f"base_model.{config.peft_type.value.lower()}_shared.")


def file_bytes(path: Path, prefix: str) -> dict[str, int]:
    """The bytes of an adapter's safetensors file: of each tensor, by name without ``prefix``, and the ``header``."""
    parts = {name.removeprefix(prefix): one.nbytes for name, one in load_file(path).items()}
    return {"header": path.stat().st_size - sum(parts.values())} | parts


def seal(packed: Tensors, config: PeftConfig | None = None) -> dict[str, Tensor]:
    """Add the checksum, which a damaged or altered file fails.

    It is SHA-256 over what the config says, and names, types, shapes and bytes of the tensors.

    Args:
        packed: The tensors.
        config: The adapter's; None for a checksum as version 0.1 wrote it, over the tensors alone.
    """
    found = hashlib.sha256(digest(config_identity(config)).encode() if config is not None else b"")
    for name in sorted(packed):
        tensor = packed[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return {**packed, CHECKSUM: torch.tensor(list(found.digest()), dtype=torch.uint8)}


def unseal(found: Tensors, config: PeftConfig) -> dict[str, Tensor]:
    """The content of a release file without its checksum.

    Raises:
        HimalayaError: Content and config do not match the checksum.
    """
    content = {name: tensor for name, tensor in found.items() if name != CHECKSUM}
    checksum = found[CHECKSUM].cpu()
    if torch.equal(seal(content)[CHECKSUM], checksum):
        logger.warning("the release was written by version 0.1: its checksum does not cover %s", CONFIG_FILE)
    elif not torch.equal(seal(content, config)[CHECKSUM], checksum):
        raise HimalayaError(
            f"the release file is damaged: its content does not match its checksum, which covers {CONFIG_FILE}, too; "
            "save it anew"
        )
    return content


def check_finite(state: Tensors, beginnings: tuple[str, ...] = ("",)) -> None:
    """Refuse values that are not finite.

    Args:
        state: Tensors by name; those on the meta device have no values.
        beginnings: Beginnings of the names that are looked at; all by default.

    Raises:
        HimalayaError: The first such tensor.
    """
    for name, tensor in state.items():
        if name.startswith(beginnings) and not tensor.is_meta and not tensor.isfinite().all():
            raise HimalayaError(f"'{name}' holds values that are not finite: the adapter is damaged")


def check_layout(found: Tensors, expected: Tensors) -> None:
    """Compare what a file holds with what the model has a place for, name by name.

    Raises:
        HimalayaError: The first difference: a tensor's name, what was found and what is expected.
    """
    for name in sorted(expected.keys() | found.keys()):
        there, wanted = found.get(name), expected.get(name)
        if there is None or wanted is None or _layout(there) != _layout(wanted):
            raise HimalayaError(
                f"the adapter file does not fit: '{name}' is {_told(there)}, expected {_told(wanted)}; it was written "
                "with another configuration, base model or version of himalaya-adapter"
            )


def _layout(tensor: Tensor) -> tuple[torch.Size, torch.dtype | None]:
    """Shape and type; all precisions are alike: a model cast to another one takes its adapter along."""
    return tensor.shape, None if tensor.is_floating_point() else tensor.dtype


def _told(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def prefixed(prefix: str, parts: Tensors) -> dict[str, Tensor]:
    """The same tensors, each name beginning with ``prefix``."""
    return {prefix + name: tensor for name, tensor in parts.items()}


def split_by_prefix(tensors: Tensors, prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those whose name begins with ``prefix``, by the rest of their name; and the others."""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return own, {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
