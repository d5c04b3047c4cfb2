"""Files and folders that are either whole or absent: they are written beside their place, then renamed.

What a killed process leaves beside a place is deleted by the next one that writes to it.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from himalaya_adapter.errors import HimalayaError

IN_USE = "{} is not an empty folder: choose a new one"
CACHE_VARIABLE = "HIMALAYA_CACHE"
# On a shared disk, another machine's processes cannot be asked for; what they left is nobody's after a day.
DAY = 24 * 3600


def cache_folder() -> Path:
    """The user's cache: ``$HIMALAYA_CACHE``, else the place of the system, such as ``~/.cache/himalaya`` on Linux."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("himalaya"))


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A hidden place in the folder of ``path``, this process's own, where something can be made and renamed from.

    It is empty at the beginning and when the block ends; what killed processes have left for ``path`` is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    name = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})\.(\d+)\.tmp")
    for left in path.parent.iterdir():
        if (found := name.fullmatch(left.name)) and _is_left(left, found[1] == machine, int(found[2])):
            _delete(left)
    own = path.with_name(f".{path.name}.{machine}.{os.getpid()}.tmp")
    try:
        yield own
    finally:
        _delete(own)


def _is_left(path: Path, here: bool, process: int) -> bool:
    """Whether the process that made ``path`` is no more; what bears this process's number is an earlier one's."""
    try:
        if not here:
            return time.time() - path.stat().st_mtime > DAY
        os.kill(process, 0)
    except (ProcessLookupError, FileNotFoundError):
        return True
    except PermissionError:
        return False
    return process == os.getpid()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink(missing_ok=True)


def delete_folder(path: Path) -> None:
    """Delete a folder, if it is there; a process killed meanwhile leaves none of it under its name."""
    rubbish = path.with_name(f".{path.name}.deleted")
    shutil.rmtree(rubbish, ignore_errors=True)  # of such a process
    if path.is_dir():
        path.rename(rubbish)
        shutil.rmtree(rubbish)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` so that a reader sees the old file or the whole new one."""
    with beside(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that is at ``path`` when the block ends, and leaves nothing if the block fails.

    Its files can be read by whoever may enter it.

    Raises:
        HimalayaError: The folder that is there is not, or no longer, empty.
    """
    path = path.resolve()
    if in_use(path):
        raise HimalayaError(IN_USE.format(path))
    with beside(path) as hidden:
        folder = hidden / path.name  # what is written may take its name from it
        folder.mkdir(parents=True)
        yield folder
        make_readable(folder)
        try:
            os.replace(folder, path)  # an empty folder may be there, nothing else
        except OSError as error:
            raise HimalayaError(IN_USE.format(path)) from error


@contextmanager
def one_process(folder: Path, busy: str) -> Iterator[None]:
    """Keep other processes off a folder; the operating system frees it when this process ends, however it does.

    The lock lies beside the folder, which may be deleted meanwhile, or not be there yet.

    Args:
        folder: Where no other process may be at work.
        busy: What is said if one is.

    Raises:
        HimalayaError: One is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()  # "." has no name
    path = place.parent / f".{place.name}.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise HimalayaError(busy) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who opens it in between finds that it is no longer there
        lock.release()


def make_readable(folder: Path) -> None:
    """Let whoever may enter a folder read its files; safetensors alone writes them for nobody but their owner."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(file.stat().st_mode | folder.stat().st_mode & 0o444)


def in_use(path: Path) -> bool:
    """Whether ``path`` is anything but a new or an empty folder."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def is_foreign(folder: Path, *own: str) -> bool:
    """Whether something is at ``folder`` and none of its names is in ``own``.

    Hidden names do not count: a process killed while it wrote the first file leaves no more than one of those.
    """
    if not folder.is_dir():
        return folder.exists()
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return bool(names) and names.isdisjoint(own)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically; NaN and infinity raise ``ValueError``."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
