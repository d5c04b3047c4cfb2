"""The file that keeps a study: Optuna's journal, which a process that is killed at any moment leaves usable."""

import json
import logging
from pathlib import Path

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from himalaya_adapter.errors import HimalayaError

logger = logging.getLogger(__name__)


class JournalLock(JournalFileOpenLock):
    """Lets one process at a time append to the journal.

    Optuna's own lock is a file that outlives a killed process; the others then wait for half a minute. This one is
    freed by the operating system. Whoever gets it cuts off a record that a process was killed in the middle of: it
    would damage the next one.

    Args:
        journal: The journal.
        path: The lock file.
    """

    def __init__(self, journal: Path, path: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._held = FileLock(path)

    def acquire(self) -> bool:
        """Wait until no other process appends."""
        self._held.acquire()
        content = self._journal.read_bytes() if self._journal.is_file() else b""
        if content and not content.endswith(b"\n"):
            logger.warning("%s ends in the middle of a record, which is dropped", self._journal)
            with open(self._journal, "r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let the next one append."""
        self._held.release()


def open_journal(path: Path, lock: Path) -> JournalStorage:
    """Open a journal, or begin one.

    Args:
        path: The journal.
        lock: The lock file of those who append to it.

    Raises:
        HimalayaError: It cannot be read or written, or a record of it is damaged; nothing is changed then.
    """
    held = JournalLock(path, lock)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
        try:
            lines = path.read_bytes().splitlines() if path.is_file() else []
        finally:
            held.release()
        for number, line in enumerate(lines, start=1):
            _check_record(path, number, line)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=held))
    except OSError as error:
        raise HimalayaError(f"cannot keep the study in {path}: {error.strerror or error}") from error
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        raise _damaged(path, f"its records do not fit together: {type(error).__name__} {error}") from error


def _check_record(path: Path, number: int, line: bytes) -> None:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _damaged(path, f"line {number}: {error}") from error
    if not isinstance(record, dict) or "op_code" not in record:
        raise _damaged(path, f"line {number} is no record of a study")


def _damaged(path: Path, reason: str) -> HimalayaError:
    return HimalayaError(f"{path} is damaged ({reason}): restore it, or start anew with overwrite=true")
