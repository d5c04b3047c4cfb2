"""An adapter that goes on learning, on disk: PEFT's two files, and ``tasks.json``, which says what each task was."""

import logging
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from peft import PeftConfig
from safetensors.torch import load_file, save_file

from himalaya_adapter.deploy.adapter_folder import (
    NEW,
    TASKS_FORMAT,
    damage_told,
    learnt_facts,
    newest_state,
    unfinished_place,
)
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.identity import COMPLETE, files_identity, is_complete, mark_complete, opened, sealed
from himalaya_adapter.methods import HimalayaConfig, HimalayaModel
from himalaya_adapter.methods.himalaya.adapter import HimalayaAdapter
from himalaya_adapter.methods.release import CARD_FILE, CONFIG_FILE, TASKS_FILE, WEIGHTS_FILE, split_by_prefix
from himalaya_adapter.names import normalised
from himalaya_adapter.packages import file_sha256
from himalaya_adapter.storage import in_use, one_process, read_json, write_atomic, write_json
from himalaya_adapter.streams import Item

from .data import Form

logger = logging.getLogger(__name__)
BYTES_PER_MB = 1_000_000
HEADER_BYTES = 8_000  # more than the names, types and shapes of the file's tensors take
PREFIX = f"base_model.{HimalayaModel.prefix}shared."
IDENTITY = "identity.json"
KEPT = "kept"  # folder of the held-out items that the user wants to be kept


class AdapterStore:
    """The folder of an adapter, and a hidden one beside it with what is not finished.

    A new state of the adapter is first written whole to the hidden folder, then copied file by file, and stays there
    until `clear`: a killed process has either changed nothing, or the next one copies it, and knows what is finished.

    Args:
        folder: Where the adapter lies or will lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unfinished = unfinished_place(folder)
        self.finished: dict[str, Any] = {}  # what a killed process had begun and done, but not told

    @property
    def exists(self) -> bool:
        """Whether an adapter is there."""
        return (self.place / CONFIG_FILE).is_file()

    @property
    def place(self) -> Path:
        """Where the adapter is read."""
        return newest_state(self.folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the adapter, and finish what one of them was killed at.

        Raises:
            HimalayaError: One is at it; or the folder is there, and is no adapter's, or part of a run; or it is a link
                to nowhere.
        """
        if self.folder.is_symlink() and not self.folder.exists():
            raise HimalayaError(f"{self.folder} is a link to {self.folder.readlink()}, which is not there: delete it")
        if (self.folder.parent / "metrics.json").is_file():
            raise HimalayaError(f"{self.folder} belongs to a run: copy it out of the run, and name the copy")
        with one_process(self.folder, f"another process is changing {self.folder}: wait for it, or end it"):
            self._copy()
            if not self.exists and in_use(self.folder):
                raise HimalayaError(f"{self.folder} is no adapter: it has no {CONFIG_FILE}; choose a new folder")
            yield

    # What is there ---------------------------------------------------------------------------------------------

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What ``tasks.json`` says: ``backbone``, and of each task its record under ``tasks``.

        Raises:
            HimalayaError: It is not what was written with the adapter.
        """
        return learnt_facts(self.place)

    def record(self, task: str) -> dict[str, Any]:
        """What is written about a task; nothing, if it was learnt in another way than by `learn`."""
        record: dict[str, Any] = self.facts["tasks"].get(normalised(task), {})
        return record

    def form(self, task: str | None) -> Form | None:
        """The form that a task was learnt in; ``None`` if nobody has written it down."""
        told = self.record(task).get("form") if task is not None else None
        return Form(**{**told, "labels": tuple(told["labels"])}) if told else None

    @cached_property
    def adapter(self) -> HimalayaAdapter:
        """The adapter itself, without its backbone.

        Raises:
            HimalayaError: There is none of this method.
        """
        with damage_told(self.folder / CONFIG_FILE):
            config = PeftConfig.from_pretrained(str(self.place)) if self.exists else None
        if not isinstance(config, HimalayaConfig) or config.released:
            kind = "a release" if isinstance(config, HimalayaConfig) else config and config.peft_type
            found = getattr(kind, "value", kind) or "no adapter"
            raise HimalayaError(f"{self.folder} is no adapter that goes on learning (found: {found})")
        with damage_told(self.folder / WEIGHTS_FILE):
            own, _ = split_by_prefix(load_file(self.place / WEIGHTS_FILE), PREFIX)
            adapter = HimalayaAdapter(config, own["atoms"].shape[1])
            adapter.load_state_dict(HimalayaModel.fitting(own, adapter.state_dict()))
        return adapter

    @property
    def bytes(self) -> int:
        """Size of the adapter's file."""
        return (self.place / WEIGHTS_FILE).stat().st_size

    def kept(self, task: str) -> list[Item] | None:
        """The held-out items that were kept of a task; ``None`` if none were.

        Raises:
            HimalayaError: They are not those that were kept.
        """
        task = normalised(task)
        path = self.folder / _kept_file(task)
        if not path.is_file():
            return None
        with damage_told(path, f"delete it, and {task} is no longer checked"):
            found = opened(read_json(path), needs_hash=True)
            if found["task"] != task:
                raise ValueError(f"it is of task '{found['task']}'")
            return [Item(**item) for item in found["items"]]

    # Changing it -----------------------------------------------------------------------------------------------

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Go on with what a killed process has begun, if it was the same; anything else that is unfinished goes."""
        before = file_sha256(self.place / WEIGHTS_FILE) if self.exists else None
        identity = {**identity, "adapter": before}
        if self._begun() == identity:
            logger.info("going on with what was begun before")
            return
        self._drop()
        write_json(self.unfinished / IDENTITY, sealed(identity))

    def _drop(self) -> None:
        if (begun := self._begun()) not in ({}, self.finished):
            logger.warning("the task '%s' that was begun here is dropped", begun.get("task"))
        self.clear()

    def clear(self) -> None:
        """Delete what is beside the adapter."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _begun(self) -> dict[str, Any]:
        """What a killed process has begun; nothing if the file is not what was written."""
        path = self.unfinished / IDENTITY
        try:
            return opened(read_json(path), needs_hash=True) if path.is_file() else {}
        except ValueError:
            return {}

    def replace(self, save: Callable[[Path], None], kept: Mapping[str, Sequence[Item]] | None = None) -> None:
        """Put a new state in the place of the old one, with `facts` as they are now.

        Args:
            save: Writes PEFT's files into a folder.
            kept: Held-out items to keep, by their task.
        """
        new = self.unfinished / NEW
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save(new)
        (new / CARD_FILE).unlink(missing_ok=True)  # PEFT's says nothing
        for task, items in (kept or {}).items():
            write_json(new / _kept_file(task), sealed({"task": task, "items": [asdict(item) for item in items]}))
        files = files_identity(new / name for name in (CONFIG_FILE, WEIGHTS_FILE))
        write_json(new / TASKS_FILE, sealed({**self.facts, "format": TASKS_FORMAT, "files": files}))
        mark_complete(new)
        self._copy()

    def forget(self, task: str) -> None:
        """Remove a task, its record, and what was kept of its items; what a killed process has begun goes too.

        Raises:
            HimalayaError: The adapter does not know it.
        """
        self.adapter.forget_task(task)
        _, others = split_by_prefix(load_file(self.folder / WEIGHTS_FILE), PREFIX)  # such as embeddings
        own = {PREFIX + name: tensor.contiguous() for name, tensor in self.adapter.state_dict().items()}
        self.facts["tasks"].pop(normalised(task), None)

        def save(folder: Path) -> None:
            shutil.copy(self.folder / CONFIG_FILE, folder)
            save_file(others | own, folder / WEIGHTS_FILE, metadata={"format": "pt"})

        self._drop()
        self.replace(save)
        self.clear()

    def _copy(self) -> None:
        new = self.unfinished / NEW
        if not is_complete(new):
            return
        self.finished = self._begun()
        for path in sorted(new.rglob("*")):
            if path.is_file() and path.name != COMPLETE:
                write_atomic(self.folder / path.relative_to(new), path.read_bytes())
        known = {_kept_file(task).name for task in learnt_facts(new)["tasks"]}
        for path in (self.folder / KEPT).glob("*.json"):
            if path.name not in known:  # of a task that is forgotten
                path.unlink()
        for read in ("adapter", "facts"):
            vars(self).pop(read, None)


def _kept_file(task: str) -> Path:
    return Path(KEPT) / f"{quote(task, safe=' ')}.json"  # a name may hold a slash


def room(adapter: HimalayaAdapter) -> int:
    """How many more tasks fit that share nothing with those that are there."""
    rows = int((~adapter.tasks.learnt).sum())
    return min(rows, len(adapter.growth.free_slots()) // adapter.config.atoms_per_task)


def sized_config(budget_mb: float, width: int, **options: Any) -> HimalayaConfig:
    """The config of the adapter with the most room whose file is not larger than a budget.

    Args:
        budget_mb: In 10^6 bytes.
        width: Of the hidden states.
        options: Other fields of the config.

    Raises:
        HimalayaError: There is not even room for one task.
    """

    atoms = options.get("atoms_per_task", HimalayaConfig.atoms_per_task)

    def with_room(tasks: int) -> HimalayaConfig:
        return HimalayaConfig(task_type="CAUSAL_LM", max_tasks=tasks, elastic_atoms=tasks * atoms, **options)

    def size(tasks: int) -> int:
        adapter = HimalayaAdapter(with_room(tasks), width)
        return HEADER_BYTES + sum(adapter.stored_bytes().values())

    try:
        smallest, budget = size(1), budget_mb * BYTES_PER_MB
    except ValueError as error:
        raise HimalayaError(f"no adapter has such sizes (--atoms-per-task {atoms}): {error}") from error
    if not smallest <= budget:
        raise HimalayaError(
            f"--budget-mb {budget_mb:g} has no room for one task: with this backbone it takes "
            f"{smallest / BYTES_PER_MB:g} MB"
        )
    most = (2**15 - HimalayaConfig.core_atoms) // atoms
    tasks = bisect_right(range(most + 1), budget, lo=1, key=size) - 1
    return with_room(tasks)
