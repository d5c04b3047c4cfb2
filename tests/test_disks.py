"""A disk that is full and one that is read-only, for real: one line each, nothing is lost, and the command goes on.

Each disk is a tmpfs in a mount namespace of the test's own process.
"""

import contextlib
import ctypes
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TASKS, forked, run_words

from himalaya_adapter.cli import main
from himalaya_adapter.learning.adapter_store import AdapterStore
from himalaya_adapter.storage import read_json, write_json

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h


def has_namespaces() -> bool:
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs none /tmp"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not has_namespaces(), reason="no disk can be mounted here (unshare --mount)")


def as_root_of_a_namespace() -> None:
    """What ``unshare --map-root-user --mount`` does, in this process (Python 3.12 has ``os.unshare``)."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"0 {user} 1")
    (own / "gid_map").write_text(f"0 {group} 1")


def do_steps(disk: Path, steps: list[list[Any]], told: Path) -> None:
    """Mount the disk in this process's own namespace, and write to ``told`` what each command says."""
    as_root_of_a_namespace()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
    found = []
    for step in steps:
        if step[0] == "himalaya":
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main([str(word) for word in step[1:]])
            found.append((status, err.getvalue()))
        elif step[0] == "fill":  # until no more than so many bytes are free
            with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
                while filler.write(bytes(4096)):
                    pass
            with open(disk / "filler", "r+b") as filler:
                filler.truncate(filler.seek(0, 2) - step[1])
        else:
            subprocess.run(step, check=True)
    write_json(told, found)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where the disk of the test is mounted."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def on_a_disk(disk: Path, *steps: list[Any]) -> list[tuple[int, str]]:
    """Do steps with a disk of 64 MB: status and messages of each command."""
    told = disk.parent / "told.json"
    assert forked(do_steps, disk, steps, told) == 0
    return [(status, messages) for status, messages in read_json(told)]


def line_of(found: tuple[int, str]) -> str:
    """The one line of a command that has failed."""
    status, messages = found
    assert status == 2, messages
    assert "Traceback" not in messages
    (line,) = [line for line in messages.splitlines() if line.startswith("himalaya: ")]
    assert messages.endswith(f"{line}\n")
    return line


@pytest.fixture(scope="module")
def words(place: Path) -> list[str]:
    rows = [{"prompt": f"Repeat {n}:", "completion": f"{n} {n}"} for n in range(24)]
    (place / "echo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_words(place, "HIMALAYA", max_updates_per_task=2)


def learn(place: Path, folder: Path, task: str) -> list[str]:
    data = ["--task", task, "--backbone", str(place / "backbone"), "--steps", "2"]
    return ["himalaya", "learn", str(folder), str(place / "echo.jsonl"), *data]


@pytest.mark.parametrize("free", [0, 40_000, 200_000])
def test_a_run_on_a_full_disk_goes_on_when_there_is_room(free: int, place: Path, words: list[str], disk: Path) -> None:
    run = ["himalaya", *words, f"results_dir={disk}"]
    kept = disk.parent / "kept"
    steps = [["fill", free], run, ["rm", disk / "filler"], run, ["cp", "-r", disk / "himalaya", kept]]
    full, again = on_a_disk(disk, *steps)
    line = line_of(full)
    assert "free some space" in line
    assert line.endswith("the same command goes on from here")
    assert again[0] == 0, again[1]
    assert [task["name"] for task in read_json(kept / "metrics.json")["tasks"]] == list(TASKS)


def test_what_is_learnt_on_a_full_disk_is_as_before(place: Path, words: list[str], disk: Path) -> None:
    folder, kept = disk / "mine", disk.parent / "kept"
    steps = [
        learn(place, folder, "first"),
        ["cp", "-r", folder, kept],
        ["fill", 8192],
        learn(place, folder, "second"),
        ["himalaya", "forget", folder, "first"],
        ["himalaya", "export", folder, "--format", "onnx", "--graph", "adapter", "--output", disk / "onnx"],
        ["diff", "-r", folder, kept],
        ["himalaya", "generate", folder, "Repeat 12:", "--task", "first", "--max-new-tokens", "2"],
        ["rm", disk / "filler"],
        learn(place, folder, "second"),
        ["rm", "-r", kept],
        ["cp", "-r", folder, kept],
    ]
    found = on_a_disk(disk, *steps)
    assert found[0][0] == 0
    for full in found[1:4]:
        assert "free some space" in line_of(full)
    assert [status for status, _ in found[4:]] == [0, 0]
    assert AdapterStore(kept).adapter.tasks.known() == ["first", "second"]


def test_on_a_read_only_disk_everything_can_be_read_and_nothing_is_lost(
    place: Path, words: list[str], disk: Path
) -> None:
    folder, run = disk / "mine", disk / "himalaya"
    writing: list[list[Any]] = [
        ["himalaya", *words, f"results_dir={disk}", "run_id=other"],
        learn(place, folder, "second"),
        learn(place, disk / "new", "first"),
        ["himalaya", "forget", folder, "first"],
        ["himalaya", "report", run],
        ["himalaya", "compare", disk],
        ["himalaya", "export", run, "--format", "onnx", "--graph", "adapter", "--output", disk / "onnx"],
        ["himalaya", "configs", "generate", "himalaya", "--output", disk / "configs"],
        ["himalaya", "sweep", *words[1:], f"results_dir={disk}", "training.seed=0,1"],
    ]
    reading: list[list[Any]] = [
        ["himalaya", *words, f"results_dir={disk}"],
        ["himalaya", "tasks", folder],
        ["himalaya", "generate", run, "Repeat 12:", "--task", "echo", "--max-new-tokens", "2"],
    ]
    steps = [
        ["himalaya", *words, f"results_dir={disk}"],
        learn(place, folder, "first"),
        ["mount", "-o", "remount,ro", disk],
        *writing,
        *reading,
    ]
    before, written, read = (lambda all: (all[:2], all[2:-3], all[-3:]))(on_a_disk(disk, *steps))
    assert [status for status, _ in before] == [0, 0]
    for words_of, found in zip(writing, written, strict=True):
        assert "Read-only file system" in line_of(found), words_of
    assert [status for status, _ in read] == [0, 0, 0], read
