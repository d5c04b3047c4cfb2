"""A run's folder: what is finished stays finished, whatever moment the process was killed at."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from himalaya_adapter.budget import EWC_PART
from himalaya_adapter.documents import document_text, read_document
from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.experiments.keys import check_folder, check_same, flattened
from himalaya_adapter.identity import is_complete, mark_complete, opened, sealed
from himalaya_adapter.methods.packed_adapter import PACKED_FILE
from himalaya_adapter.storage import (
    delete_folder,
    make_readable,
    one_process,
    read_json,
    write_atomic,
    write_json,
)
from himalaya_adapter.training.online_ewc import EWC_FILE

logger = logging.getLogger(__name__)
BEFORE = "before"
ADAPTER_FILE = "adapter_model.safetensors"
UNLABELLED = "unlabelled"
RELEASED = "released"
# What decides a run's numbers, of what environment.json tells; a run goes on only with the same.
FIXED = ("data_hashes", "backbone_revision", "dtype", "processes", "scoring", "tasks")
EARLIER = "earlier"  # of environment.json: what was otherwise before the run went on, a list
# What mends a damaged file.
DELETE, ANEW = "delete this file, and the same command computes it again", "start the run anew with overwrite=true"


class RunStore:
    """Reads and writes the parts of one run. Nothing is written before ``begin``.

    Args:
        folder: ``<results_dir>/<run_id>``.
        config: The resolved run config.
        overwrite: ``begin`` deletes what an earlier run has left; until then the folder counts as empty.

    Raises:
        HimalayaError: The folder belongs to another config, whose first differing key the message names, or is no
            run's folder.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder = folder
        self.config = config
        self.overwrite = overwrite
        path = folder / "config.yaml"
        check_folder(folder, folder.name, "run")
        if path.is_file() and not overwrite:
            check_same(read_document(path), config, str(folder), "run")

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes off this run.

        Raises:
            HimalayaError: Another process works on this run.
        """
        way_out = "wait for it, end it, or choose another run_id or results_dir"
        return one_process(self.folder, f"another process is working on {self.folder}: {way_out}")

    def begin(self, environment: Mapping[str, Any]) -> None:
        """Write what the run is and with what it is made, or go on with a folder that holds the same.

        Another machine, or other versions, are told in a line; the earlier ones are kept.

        Raises:
            HimalayaError: The data or the backbone is no longer what the folder was begun with.
        """
        if self.overwrite:
            delete_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "environment.json"
        if path.is_file():
            found = self._read(path, needs_hash=False)
            before, now = (flattened({key: one.get(key) for key in FIXED}) for one in (found, environment))
            for key in now | before:
                if before.get(key) != now.get(key):
                    raise HimalayaError(
                        f"{self.folder} was begun with {key}={before.get(key)!r}, which is {now.get(key)!r} now: "
                        "restore it, choose another run_id or results_dir, or start anew with overwrite=true"
                    )
            environment = {**environment, EARLIER: [*found.get(EARLIER, []), *self._changed(found, environment)]}
        if not (self.folder / "config.yaml").is_file():
            write_atomic(self.folder / "config.yaml", document_text(dict(self.config)))
        write_json(path, environment)
        shutil.rmtree(self.unfinished_adapter, ignore_errors=True)
        self._write_events()  # a process killed right after a task's record has not written its event

    @property
    def unfinished_adapter(self) -> Path:
        """Where an adapter is saved before ``write_learned`` makes it final."""
        return self.folder / "checkpoints" / "unfinished_adapter"

    def _changed(self, found: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the machine and the versions were before, where they are others now; told in a line."""
        before = {key: found[key] for key in now.keys() & found.keys() - {*FIXED} if found[key] != now[key]}
        if not before:
            return []
        told = ", ".join(f"{key}={now[key]!r} ({before[key]!r} before)" for key in sorted(before))
        logger.warning(
            "%s goes on with %s: a run that was never interrupted may have other numbers", self.folder, told
        )
        return [before]

    def _read(self, path: Path, mend: str = ANEW, *, needs_hash: bool = True) -> Any:
        try:
            return opened(read_json(path), needs_hash=needs_hash)
        except (ValueError, AttributeError) as error:
            raise HimalayaError(f"{path} is damaged ({one_line(error)}): {mend}") from error

    @property
    def finished(self) -> bool:
        """Whether the run has its final metrics and is to keep them."""
        return not self.overwrite and (self.folder / "metrics.json").is_file()

    # Scores ----------------------------------------------------------------------------------------------------

    def score(self, row: int | str, task: int) -> dict[str, Any] | None:
        """The stored score of ``task`` after training through task ``row``, or at another time that it names."""
        path = self._score_path(row, task)
        again = isinstance(row, str) or self.adapter_path(row).is_dir()  # else its adapter is no longer kept
        return self._read(path, DELETE if again else ANEW) if path.is_file() else None

    def scores(self, row: int | str, tasks: int) -> list[dict[str, Any] | None]:
        """The stored scores of the first tasks in a row, ``None`` where there is none."""
        return [self.score(row, task) for task in range(tasks)]

    def matrix(self, rows: int) -> list[list[dict[str, Any] | None]]:
        """The first rows of the accuracy matrix, each up to the diagonal."""
        return [self.scores(row, row + 1) for row in range(rows)]

    def write_score(self, row: int | str, task: int, score: Mapping[str, Any]) -> None:
        """Store one score with its item scores."""
        write_json(self._score_path(row, task), sealed(score))

    def _score_path(self, row: int | str, task: int) -> Path:
        return self.folder / "evaluations" / f"after_{row}_task_{task}.json"

    # Learned tasks ---------------------------------------------------------------------------------------------

    def learned(self) -> list[dict[str, Any]]:
        """The records of the tasks learned so far, in order."""
        records: list[dict[str, Any]] = []
        while (path := self._record_path(len(records))).is_file():
            records.append(self._read(path))
        return records

    def write_learned(self, index: int, record: Mapping[str, Any]) -> None:
        """Make a learned task final: its adapter first, then the record that says so.

        Args:
            index: Position of the task.
            record: What is known about its training; it becomes a line of ``events.jsonl``. Those under its key
                ``events`` become the lines before it.
        """
        target = self.adapter_path(index)
        shutil.rmtree(target, ignore_errors=True)  # of an earlier try that was killed before its record was written
        make_readable(self.unfinished_adapter)
        mark_complete(self.unfinished_adapter)
        self.unfinished_adapter.replace(target)
        write_json(self._record_path(index), sealed(record))
        self._write_events()
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

    def _write_events(self) -> None:
        events = [event for record in self.learned() for event in [*record.pop("events", []), record]]
        lines = [json.dumps(event, ensure_ascii=False) + "\n" for event in events]
        write_atomic(self.folder / "events.jsonl", "".join(lines))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of the Trainer in a folder; others are deleted with a message."""
    found = folder.glob("checkpoint-*")
    for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if is_complete(path):
            return path
        logger.warning("%s is half-written or damaged, deleted; the run goes on from what was before it", path)
        shutil.rmtree(path)
    return None


def stored_bytes(folder: Path, parts: Mapping[str, int] | None, adapters: int = 1) -> dict[str, Any]:
    """All bytes that a saved adapter takes and those by part, as keys of a task's record.

    Args:
        folder: The saved adapter, with EWC's file if that is on. If it is stored in few bits, that file counts.
        parts: What the method counts itself; if nothing, its file is one part.
        adapters: How many of its size are kept.
    """
    packed = folder / PACKED_FILE
    adapter = (packed if packed.is_file() else folder / ADAPTER_FILE).stat().st_size
    ewc = {EWC_PART: path.stat().st_size} if (path := folder / EWC_FILE).is_file() else {}
    counted = parts if parts and not packed.is_file() else {"adapter": adapter}
    by_part = {name: size * adapters for name, size in {**counted, **ewc}.items()}
    return {"stored_bytes": (adapter + sum(ewc.values())) * adapters, "stored_bytes_by_part": by_part}


def values(matrix: Sequence[Sequence[Mapping[str, Any] | None]], key: str) -> list[list[Any]]:
    """One value of each stored score, ``None`` where there is no score."""
    return [[score[key] if score else None for score in row] for row in matrix]
