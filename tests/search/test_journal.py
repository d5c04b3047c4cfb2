"""The study's file survives a process that is killed while it writes, and is never silently read wrong."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import optuna
import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.search.journal import JournalLock, open_journal


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = tmp_path / "study.journal"
    study = optuna.create_study(storage=open_journal(path, tmp_path / "lock"), study_name="a")
    for number in range(3):
        study.tell(study.ask(), number)
    return path


def values(journal: Path) -> list[float | None]:
    study = optuna.load_study(study_name="a", storage=open_journal(journal, journal.with_name("lock")))
    return [trial.value for trial in study.trials]


def test_half_a_record_is_dropped_and_the_next_one_is_whole(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open(journal, "ab") as file:
        file.write(b'{"op_code":6,"worker')
    study = optuna.load_study(study_name="a", storage=open_journal(journal, journal.with_name("lock")))
    assert "ends in the middle of a record" in caplog.text
    study.tell(study.ask(), 7.0)
    assert values(journal) == [0, 1, 2, 7]


@pytest.mark.parametrize("line", [0, 2, -1])
@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe\x00", b"[1]", b'{"op": 3}', b'{"op_code": 6}'])
def test_a_damaged_record_is_one_line(line: int, damage: bytes, journal: Path) -> None:
    lines = journal.read_bytes().splitlines()
    lines[line] = damage
    journal.write_bytes(b"\n".join(lines) + b"\n")
    before = journal.read_bytes()
    with pytest.raises(HimalayaError, match=r"study\.journal is damaged \(.*overwrite=true") as caught:
        open_journal(journal, journal.with_name("lock"))
    assert "\n" not in str(caught.value)
    assert journal.read_bytes() == before


def hold(journal: Path, lock: Path) -> None:
    JournalLock(journal, lock).acquire()
    journal.with_name("held").touch()
    time.sleep(60)


def test_a_killed_process_keeps_nobody_waiting(journal: Path) -> None:
    """Optuna's own lock would be one more file here, and the others would wait half a minute for its owner."""
    lock = journal.with_name("lock")
    process = multiprocessing.get_context("fork").Process(target=hold, args=(journal, lock))
    process.start()
    while not journal.with_name("held").exists():
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert sorted(path.name for path in journal.parent.iterdir()) == ["held", "lock", "study.journal"]
    study = optuna.load_study(study_name="a", storage=open_journal(journal, lock))
    study.tell(study.ask(), 7.0)
    assert values(journal) == [0, 1, 2, 7]


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HimalayaError, match="cannot keep the study in"):
        open_journal(tmp_path / "file" / "study.journal", tmp_path / "lock")
