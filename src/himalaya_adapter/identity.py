"""What decides a number, and its hash: one definition for runs, kept scores, backbones and release files."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from himalaya_adapter.packages import file_sha256
from himalaya_adapter.storage import read_json, write_json

if TYPE_CHECKING:
    from peft import PeftConfig

    from himalaya_adapter.streams.task import Task

# Version of what is done to get a score from a model and a task. 1: labels were scored by the mean of their tokens or
# by their first one, and what looked like a special token in a text was one. 2: BLEU took kana for one word.
SCORING, LABELS = 3, 2
SEAL = "sha256"
COMPLETE = "complete.json"


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def task_identity(task: "Task", *splits: str) -> dict[str, Any]:
    """All that a score of ``task`` depends on beside the model: its items and how they are asked and scored.

    Args:
        task: The task; of its training items only whether their answers are single lines matters.
        splits: The items that are scored.
    """
    spec = task.spec
    return {
        "items": {split: task.hashes[split] for split in splits},
        "task": spec.name,  # which an adapter may be told
        "kind": spec.kind,
        "template": spec.template,
        "target": spec.target,
        "metric": spec.metric,
        "labels": list(spec.labels),
        "max_new_tokens": spec.max_new_tokens,
        "answers_are_lines": task.answers_are_lines,
    }


def files_identity(files: Iterable[Path]) -> dict[str, str]:
    """The names of files and the SHA-256 of their contents."""
    return {path.name: file_sha256(path) for path in sorted(files)}


def mark_complete(folder: Path) -> None:
    """Write the marker that says that all files of ``folder`` are there, with their hashes."""
    write_json(folder / COMPLETE, _hashes(folder))


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` has its marker and every file of then is what it was; others may have come."""
    try:
        marked = read_json(folder / COMPLETE)
        return bool(marked) and all(file_sha256(folder / name) == known for name, known in marked.items())
    except (OSError, ValueError, AttributeError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((COMPLETE, ".")))
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(files)}


def config_identity(config: "PeftConfig") -> dict[str, Any]:
    """What a method's config says: the fields of its own, that is not those that every config of PEFT has.

    Fields are left out that have the default with which they came (``at_first`` in the metadata of one whose default
    is another one now): a field that is added later changes no identity, nor does a new default.
    """
    from peft import PeftConfig  # slow to import, and it imports the methods

    shared = {field.name for field in fields(PeftConfig)}
    own: dict[str, Any] = {}
    for field in fields(config):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(config, field.name)
        if field.name not in shared and value != field.metadata.get("at_first", default):
            # PEFT may name a module to save twice.
            value = [*dict.fromkeys(value)] if isinstance(value, list) else value
            own[field.name] = sorted(value) if isinstance(value, set) else value
    return own


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with its hash, for a file."""
    return {**content, SEAL: digest(content)}


def opened(content: Mapping[str, Any], *, needs_hash: bool = False) -> dict[str, Any]:
    """What was sealed.

    Args:
        content: What stands in the file.
        needs_hash: Refuse what has no hash; without it, that counts as what an earlier version has written.

    Raises:
        ValueError: The content is not what was sealed.
    """
    if needs_hash and (not isinstance(content, dict) or SEAL not in content):
        raise ValueError("it has no hash: it was edited, or written before there was one")
    inside = {key: value for key, value in content.items() if key != SEAL}
    if SEAL in content and content[SEAL] != digest(inside):
        raise ValueError("its content does not match its hash")
    return inside
