"""Scores kept by content: the same adapter, items, settings and code have the same score, so it is kept."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from himalaya_adapter.identity import digest, files_identity, opened, sealed, task_identity
from himalaya_adapter.packages import file_sha256
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.streams.task import Task

PACKAGE = Path(__file__).parent.parent
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class ScoreCache:
    """Scores in a folder that the runs of one results folder share; any file in it may be deleted at any time.

    Rivals share the row before training, which is the frozen backbone's whatever the method; a run that is started
    anew shares all rows whose adapter comes out as it did.

    Args:
        folder: Where the files are, one for each score, named after the hash of what it is the score of.
        settings: What all scores of this run have in common beside the code: backbone, versions, sizes of batches.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = {**settings, "code": code_hash()}

    def identity(self, task: Task, adapter: Mapping[str, str] | None, split: str = "test") -> dict[str, Any]:
        """All that the score of ``task`` depends on, as JSON.

        Args:
            task: The task.
            adapter: Hashes of what answers, ``None`` for the frozen backbone.
            split: The items that are scored.
        """
        return {
            "adapter": dict(adapter) if adapter else None,
            "task": task_identity(task, split),
            "settings": self.settings,
        }

    def read(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The score that was written for the same identity; a damaged file counts as none, and is computed again."""
        try:
            entry = opened(read_json(self._path(identity)))
            return entry["score"] if entry["of"] == identity else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, identity: Mapping[str, Any], score: Mapping[str, Any]) -> None:
        """Keep a score; the file is whole or absent, so several runs may write at the same time."""
        write_json(self._path(identity), sealed({"of": identity, "score": score}))

    def _path(self, identity: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest(identity)}.json"


def file_hashes(adapter: Path) -> dict[str, str]:
    """Hashes of all of a saved adapter: what answers as a method that does not say what a single task depends on."""
    return files_identity(adapter / name for name in ADAPTER_FILES)


@cache
def code_hash() -> str:
    """SHA-256 over this package's own source files: changed code may score differently, so it shares nothing."""
    return digest({str(path.relative_to(PACKAGE)): file_sha256(path) for path in PACKAGE.rglob("*.py")})
