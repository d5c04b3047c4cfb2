"""Files and folders that are either whole or absent: they are written beside their place, then renamed."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from himalaya_adapter.errors import HimalayaError

IN_USE = "{} is not an empty folder: choose a new one"
CACHE_VARIABLE = "HIMALAYA_CACHE"


def cache_folder() -> Path:
    """The user's cache: ``$HIMALAYA_CACHE``, else the place of the system, such as ``~/.cache/himalaya`` on Linux."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("himalaya"))


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that is at ``path`` when the block ends, and leaves nothing if the block fails.

    Its files can be read by whoever may enter it; safetensors alone writes files for nobody but their owner.

    Raises:
        HimalayaError: No folder can be made there, or the one that is there is no longer empty.
    """
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise HimalayaError(f"{path} cannot be made: {error.strerror}") from error
    with beside as temporary:
        folder = Path(temporary) / path.name
        folder.mkdir()
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(file.stat().st_mode | folder.stat().st_mode & 0o444)
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
        HimalayaError: One is, or nothing can be written there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HimalayaError(f"cannot make the folder {folder}: {error.strerror}") from error
    path = folder.with_name(f".{folder.name}.lock")
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


def in_use(path: Path) -> bool:
    """Whether ``path`` is anything but a new or an empty folder."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically; NaN and infinity raise ``ValueError``."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
