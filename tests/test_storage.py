"""Folders are whole or absent, and others may read what is exported."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.storage import beside, whole_folder, write_atomic


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    place = tmp_path / "export"

    def write(content: str, fails: bool = False) -> None:
        with whole_folder(place) as folder:
            (folder / "first.txt").write_text(content)
            if fails:
                raise KeyboardInterrupt
            (folder / "second.txt").write_text(content)

    with pytest.raises(KeyboardInterrupt):
        write("one", fails=True)
    assert list(tmp_path.iterdir()) == []
    write("one")
    with pytest.raises(HimalayaError, match="export is not an empty folder"):
        write("two")
    assert {file.name: file.read_text() for file in place.iterdir()} == {"first.txt": "one", "second.txt": "one"}
    assert list(tmp_path.iterdir()) == [place]


def test_an_empty_folder_is_filled_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["file"]
    with (
        pytest.raises(FileExistsError),
        whole_folder(tmp_path / "place" / "file" / "export"),
    ):
        pass


def leftover(path: Path, process: int, machine: str | None = None) -> Path:
    """What a process leaves for ``path`` that is killed while it writes."""
    with beside(path) as own:
        here = own.name.split(".")[-3]
    return path.with_name(f".{path.name}.{machine or here}.{process}.tmp")


def test_what_a_killed_process_has_left_is_swept_by_the_next_that_writes_there(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    place = tmp_path / "scores.json"
    killed, living = leftover(place, ended.pid), leftover(place, os.getppid())
    elsewhere, long_ago = leftover(place, 1, "0" * 8), leftover(place, 2, "0" * 8)
    of_another = leftover(tmp_path / "other.json", ended.pid)
    for path in (killed, living, elsewhere, long_ago, of_another):
        path.touch()
    os.utime(long_ago, (0, 0))
    write_atomic(place, "{}")
    assert set(tmp_path.iterdir()) == {place, living, elsewhere, of_another}
    export = leftover(tmp_path / "export", ended.pid)
    (export / "export").mkdir(parents=True)
    with whole_folder(tmp_path / "export") as folder:
        (folder / "file").touch()
    assert not export.exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomic(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_whoever_may_enter_a_folder_may_read_its_files(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "export") as folder:
        (folder / "inner").mkdir()
        (folder / "script.sh").touch(0o755)
        save_file({"weight": torch.zeros(2)}, folder / "inner" / "model.safetensors")
        folder.chmod(0o750)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "export").rglob("*.s*")}
    assert modes["model.safetensors"] & 0o777 == 0o640
    assert modes["script.sh"] & 0o100
