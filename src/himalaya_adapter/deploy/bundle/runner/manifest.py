"""What a bundle says of itself, and whether its files are those it was made with."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST, DIGEST = "manifest.json", "digest"


class BundleError(Exception):
    """What is wrong with a bundle or with the way it is used, in one line."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked.

    Args:
        folder: Where it lies.
        manifest: Its manifest.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks; a task's index is what the graph takes."""
        return list(self.manifest["tasks"])

    def graph(self, name: str) -> Path:
        """The file of the graph ``base`` or ``adapted``."""
        return self.folder / self.manifest["graphs"][name]


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest and compare it and every file with their hashes.

    Raises:
        BundleError: No bundle there, or a file that is missing or has other content.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest[DIGEST] != digest(manifest):
            raise ValueError("its hash differs")
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST} is damaged ({error}): copy the bundle again") from error
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise BundleError(f"the bundle has lost its file {name}: copy the bundle again")
        if sha256(folder / name) != expected:
            raise BundleError(f"the bundle's file {name} is damaged (its hash differs): copy the bundle again")
    return Bundle(folder, manifest)


def digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own digest, in hexadecimal digits."""
    content = {key: value for key, value in manifest.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
