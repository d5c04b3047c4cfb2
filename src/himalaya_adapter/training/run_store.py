"""A run's folder: what is finished stays finished, whatever moment the process was killed at."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.storage import read_json, write_atomic, write_json
from himalaya_adapter.training.callback import COMPLETE

logger = logging.getLogger(__name__)
BEFORE = "before"


class RunStore:
    """Reads and writes the parts of one run.

    Args:
        folder: ``<results_dir>/<run_id>``.
        config: The resolved run config. A folder that was begun with another one is refused.

    Raises:
        HimalayaError: The folder belongs to another config; the message names the first key that differs.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / "config.yaml"
        if path.is_file():
            self._check_same(yaml.safe_load(path.read_text(encoding="utf-8")), config)
        elif folder.is_dir() and any(folder.iterdir()):
            raise HimalayaError(f"{folder} is not empty and holds no config.yaml: choose another results_dir or run_id")
        else:
            write_atomic(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def _check_same(self, found: Any, wanted: Mapping[str, Any]) -> None:
        before, now = _flat(found), _flat(wanted)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise HimalayaError(
                    f"{self.folder} was begun with {key}={before.get(key)!r}, this run has {now.get(key)!r}: "
                    "choose another run_id or results_dir, or delete it with overwrite=true"
                )

    @property
    def finished(self) -> bool:
        """Whether the run has its final metrics."""
        return (self.folder / "metrics.json").is_file()

    # Scores ----------------------------------------------------------------------------------------------------

    def score(self, row: int | str, task: int) -> dict[str, Any] | None:
        """The stored score of ``task`` after training through task ``row`` (or ``"before"``), if there is one."""
        path = self._score_path(row, task)
        return read_json(path) if path.is_file() else None

    def write_score(self, row: int | str, task: int, score: Mapping[str, Any]) -> None:
        """Store one score with its item scores."""
        write_json(self._score_path(row, task), score)

    def _score_path(self, row: int | str, task: int) -> Path:
        return self.folder / "evaluations" / f"after_{row}_task_{task}.json"

    # Learned tasks ---------------------------------------------------------------------------------------------

    def learned(self) -> list[dict[str, Any]]:
        """The records of the tasks learned so far, in order."""
        records: list[dict[str, Any]] = []
        while (path := self._record_path(len(records))).is_file():
            records.append(read_json(path))
        return records

    def write_learned(self, index: int, record: Mapping[str, Any], adapter: Path) -> None:
        """Make a learned task final: its adapter first, then the record that says so.

        Args:
            index: Position of the task.
            record: What is known about its training; it becomes a line of ``events.jsonl``.
            adapter: A folder with the saved adapter; it is moved.
        """
        target = self.adapter_path(index)
        shutil.rmtree(target, ignore_errors=True)  # of an earlier try that was killed before its record was written
        adapter.replace(target)
        write_json(self._record_path(index), record)
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in self.learned()]
        write_atomic(self.folder / "events.jsonl", "".join(lines))
        shutil.rmtree(self.task_checkpoints(index), ignore_errors=True)
        shutil.rmtree(self.adapter_path(index - 1), ignore_errors=True)

    def adapter_path(self, index: int) -> Path:
        """The adapter after task ``index``; only the latest one is kept."""
        return self.folder / "checkpoints" / f"after_{index}"

    def task_checkpoints(self, index: int) -> Path:
        """Where the Trainer keeps its checkpoints inside task ``index``."""
        return self.folder / "checkpoints" / f"task_{index}"

    def _record_path(self, index: int) -> Path:
        return self.folder / "checkpoints" / f"record_{index}.json"

    def last_checkpoint(self, index: int) -> Path | None:
        """The newest whole checkpoint inside task ``index``; half-written ones are deleted with a message."""
        whole: list[Path] = []
        for path in self.task_checkpoints(index).glob("checkpoint-*"):
            if (path / COMPLETE).is_file():
                whole.append(path)
            else:
                logger.warning("%s is half-written, deleted; the run goes on from the one before it", path)
                shutil.rmtree(path)
        return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        path: leaf
        for key, entry in value.items()
        for path, leaf in _flat(entry, f"{prefix}.{key}" if prefix else str(key)).items()
    }
