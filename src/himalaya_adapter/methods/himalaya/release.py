"""Adapter files: what a release holds, the way back, and what is checked before anything is loaded (section 7)."""

import copy
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.storage import read_json, write_atomic

from .config import UNQUANTISED_BITS, HimalayaConfig
from .dictionary import unit_rows
from .quantization import dequantise_matrix, dequantise_rows, quantise_matrix, quantise_rows

# What inference needs. Everything else that an adapter stores is the state of its training, and left out.
ATOMS = ("dictionary.core", "dictionary.elastic")
ROWS = ("router.head", "router.projection")
AS_THEY_ARE = (
    *("router.offset", "code", "in_use"),
    *("tree.thresholds", "tree.axes", "tree.spread", "tree.path"),
    *("memory.covariance", "memory.means", "memory.codes", "memory.tasks", "memory.closed"),
)
CHECKSUM = "checksum"

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS_PREFIX = "base_model.himalaya_shared."


def save_release(model: PeftModel, folder: str | Path, adapter_name: str = "default") -> dict[str, int]:
    """Write a small file for inference: atoms in `quantisation_bits` bits, router in int8, no training state.

    `peft.PeftModel.from_pretrained` opens the folder. ``model`` itself stays as it is, and can be trained on.

    Args:
        model: A model with a HIMALAYA adapter.
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` are written; made if needed.
        adapter_name: Which of the model's adapters.

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
    if not isinstance(config, HimalayaConfig):
        raise HimalayaError(f"adapter '{adapter_name}' is of method {config.peft_type.value}, not HIMALAYA")
    if (folder / CONFIG_FILE).is_file() and not read_json(folder / CONFIG_FILE).get("released"):
        raise HimalayaError(f"{folder} holds an adapter that can be trained on: choose another folder for the release")
    released = copy.copy(config)
    released.released = True
    model.peft_config[adapter_name] = released  # for as long as PEFT saves
    try:
        with tempfile.TemporaryDirectory() as temporary:
            model.save_pretrained(temporary, selected_adapters=[adapter_name])
            for path in sorted(Path(temporary).rglob("*"), reverse=True):  # the weights before the config
                if path.is_file():
                    write_atomic(folder / path.name, path.read_bytes())
    finally:
        model.peft_config[adapter_name] = config
    return file_bytes(folder / WEIGHTS_FILE)


def file_bytes(path: Path) -> dict[str, int]:
    """The bytes of every tensor in an adapter's safetensors file, and of its ``header``, by name."""
    with open(path, "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    parts = {name.removeprefix(WEIGHTS_PREFIX): tensor.nbytes for name, tensor in load_file(path).items()}
    return {"header": header} | parts


def pack(state: Mapping[str, Tensor], config: HimalayaConfig) -> dict[str, Tensor]:
    """What a release file holds of an adapter's state, the checksum apart.

    Args:
        state: `SharedAdapter.state_dict()`; on the meta device shapes and types are computed only.
        config: The adapter's configuration; `quantisation_bits` 16 stores atoms and router in half precision.

    Raises:
        HimalayaError: A value of the dictionary or the router is not finite.
    """
    _check_finite(state)
    packed: dict[str, Tensor] = {}
    if config.quantisation_bits == UNQUANTISED_BITS:
        packed.update({name: state[name].half() for name in (*ATOMS, *ROWS)})
    else:
        atoms = torch.cat([state[name] for name in ATOMS])
        packed.update(_prefixed("dictionary.", quantise_matrix(atoms, config.quantisation_bits)))
        for name in ROWS:
            packed.update(_prefixed(f"{name}.", quantise_rows(state[name])))
    # A scan has no tree.
    return packed | {name: state[name].detach().clone() for name in AS_THEY_ARE if name in state}


def unpack(packed: Mapping[str, Tensor], config: HimalayaConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the part of an adapter's state that `pack` kept, with atoms of length 1.

    Args:
        packed: What `pack` returned.
        config: The adapter's configuration.
        state: The state of a new adapter, for the precision of each tensor.
    """
    if config.quantisation_bits == UNQUANTISED_BITS:
        atoms = torch.cat([packed[name] for name in ATOMS]).float()
        wide = {name: packed[name].float() for name in ROWS}
    else:
        atoms = dequantise_matrix(split_by_prefix(packed, "dictionary.")[0], config.quantisation_bits)
        wide = {name: dequantise_rows(split_by_prefix(packed, f"{name}.")[0]) for name in ROWS}
    wide.update(zip(ATOMS, unit_rows(atoms).split([config.core_atoms, config.elastic_atoms]), strict=True))
    as_they_are = {name: tensor for name, tensor in packed.items() if name in state and name not in wide}
    return {name: tensor.to(state[name].dtype) for name, tensor in (wide | as_they_are).items()}


def seal(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the checksum, SHA-256 over names, types, shapes and bytes, which a damaged or altered file fails."""
    digest = hashlib.sha256()
    for name in sorted(packed):
        tensor = packed[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return {**packed, CHECKSUM: torch.tensor(list(digest.digest()), dtype=torch.uint8)}


def open_file(found: Mapping[str, Tensor], config: HimalayaConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole state that an adapter's file stands for, checked name by name before anything is changed.

    Args:
        found: The file's tensors, by their names inside the adapter.
        config: The adapter's configuration; `released` says which kind of file it must be.
        state: `SharedAdapter.state_dict()` of the adapter to load into; a release leaves its training state as it
            is, or zero where it was never made (the meta device).

    Raises:
        HimalayaError: The first difference: a tensor's name, what was found and what is expected; or damaged content.
    """
    if not config.released:
        _check_layout(found, state)
        _check_finite(found)
        return dict(found)
    layout = pack({name: tensor.to("meta") for name, tensor in state.items()}, config)
    _check_layout(found, layout | {CHECKSUM: torch.empty(32, dtype=torch.uint8, device="meta")})
    content = {name: tensor for name, tensor in found.items() if name != CHECKSUM}
    if not torch.equal(seal(content)[CHECKSUM], found[CHECKSUM].cpu()):
        raise HimalayaError("the release file is damaged: its content does not match its checksum; save it anew")
    device = found[CHECKSUM].device
    untrained = {name: torch.zeros_like(one, device=device) if one.is_meta else one for name, one in state.items()}
    return untrained | unpack(content, config, state)


def check_other_modules(found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse what a file holds beside the adapter (`modules_to_save`, embeddings) if the model has no place for it.

    Raises:
        HimalayaError: The first tensor that is unknown or of another shape.
    """
    for name, tensor in found.items():
        there, wanted = list(tensor.shape), list(state[name].shape) if name in state else "nothing"
        if there != wanted:
            raise HimalayaError(f"the adapter file does not fit: '{name}' is {there}, expected {wanted}")


def _check_layout(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        there = _kind(found[name]) if name in found else "nothing"
        wanted = _kind(expected[name]) if name in expected else "nothing"
        if there != wanted:
            raise HimalayaError(
                f"the adapter file does not fit: '{name}' is {there}, expected {wanted}; it was written with another "
                "configuration, base model or version of HIMALAYA"
            )


def _check_finite(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name.startswith(("dictionary.", "router.")) and not tensor.is_meta and not tensor.isfinite().all():
            raise HimalayaError(f"'{name}' holds values that are not finite: the adapter is damaged")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _prefixed(prefix: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in parts.items()}


def split_by_prefix(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those whose name begins with ``prefix``, by the rest of their name; and the others."""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return own, {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
