"""A run that is killed again and again ends as one that never was: same scores, same adapter, bit for bit."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import held_out_text, in_own_process, results, run_words

from himalaya_adapter.cli import main
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.training import stream_runner
from himalaya_adapter.training.run_store import mark_complete
from himalaya_adapter.training.stream_runner import run_stream

KILLED = -9
both_methods = pytest.mark.parametrize("method", ["HIMALAYA", "LORA_EWC"], indirect=True)
# Two epochs, so that a task is also resumed in the middle of its second one.
TRAINING = {"task_epochs": 2, "save_steps": 2}


@pytest.fixture
def method(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "HIMALAYA")


@pytest.fixture
def words(place: Path, method: str) -> list[str]:
    return run_words(place, method, **TRAINING)


@pytest.fixture
def uninterrupted(place: Path, method: str, words: list[str]) -> Path:
    """The folder of a run that was never killed."""
    folder = place / "uninterrupted" / method.lower()
    if not (folder / "metrics.json").is_file():
        assert in_own_process([*words, f"results_dir={folder.parent}"]) == 0
    return folder


@pytest.mark.parametrize("method", ["HIMALAYA", pytest.param("LORA_EWC", marks=pytest.mark.slow)], indirect=True)
def test_killed_at_random_writes(uninterrupted: Path, words: list[str], tmp_path: Path, method: str) -> None:
    chance = random.Random(f"writes {method}")
    kills = 0
    while in_own_process([*words, f"results_dir={tmp_path}"], write=chance.randint(1, 120)) == KILLED:
        kills += 1
    assert kills >= 3
    assert results(tmp_path / method.lower()) == results(uninterrupted)


@pytest.mark.slow  # what a kill can leave behind, a kill at a random write leaves, too
def test_killed_at_random_times(uninterrupted: Path, words: list[str], tmp_path: Path, method: str) -> None:
    chance = random.Random(f"times {method}")
    started = time.perf_counter()
    assert in_own_process([*words, f"results_dir={tmp_path / 'timed'}"]) == 0
    whole = time.perf_counter() - started
    kills = 0
    while not (tmp_path / method.lower() / "metrics.json").is_file():
        # A share of what a whole run takes here and now; it grows, so that a busy machine gets to the end, too.
        seconds = whole * (chance.uniform(0.4, 0.8) + kills / 20)
        kills += in_own_process([*words, f"results_dir={tmp_path}"], seconds=seconds) == KILLED
    assert kills >= 1
    assert results(tmp_path / method.lower()) == results(uninterrupted)


def finish(words: list[str], results_dir: Path) -> None:
    """Run to the end in this process, without the report."""
    run_stream(compose_run(words[1:]).run, results_dir)


def damage(checkpoints: list[Path], how: str) -> None:
    """Do to the newest checkpoint what a kill or a broken disk does."""
    newest = checkpoints[-1]
    if how == "no marker":
        (newest / "complete.json").unlink()
    elif how == "half a marker":
        (newest / "complete.json").write_text('{"adapter_mo', encoding="utf-8")
    elif how == "truncated adapter":
        path = newest / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "flipped bit in the optimiser":
        content = bytearray((newest / "optimizer.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (newest / "optimizer.pt").write_bytes(content)
    elif how == "no random state":
        (newest / "rng_state.pth").unlink()
    else:
        assert how == "all truncated"
        for checkpoint in checkpoints:
            (checkpoint / "trainer_state.json").write_text("{", encoding="utf-8")


@pytest.fixture
def killed_in_second_task(place: Path, method: str, words: list[str]) -> Path:
    """A run killed right before the third checkpoint of its second task."""
    folder = place / "killed" / method.lower()
    if not folder.is_dir():
        assert in_own_process([*words, f"results_dir={folder.parent}"], write="task_1/checkpoint-6") == KILLED
    return folder


@pytest.mark.parametrize(
    "how",
    [
        "no marker",
        pytest.param("half a marker", marks=pytest.mark.slow),
        "truncated adapter",
        "flipped bit in the optimiser",
        pytest.param("no random state", marks=pytest.mark.slow),
        "all truncated",
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    how: str,
    killed_in_second_task: Path,
    uninterrupted: Path,
    words: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / killed_in_second_task.name
    shutil.copytree(killed_in_second_task, folder)
    checkpoints = [folder / "checkpoints" / "task_1" / f"checkpoint-{step}" for step in (2, 4)]
    assert all((checkpoint / "complete.json").is_file() for checkpoint in checkpoints)
    damage(checkpoints, how)
    finish(words, tmp_path)
    assert f"{checkpoints[-1]} is half-written or damaged" in caplog.text
    assert results(folder) == results(uninterrupted)


@both_methods
def test_a_resumed_task_starts_at_its_checkpoint(
    killed_in_second_task: Path, words: list[str], tmp_path: Path, method: str
) -> None:
    folder = tmp_path / method.lower()
    shutil.copytree(killed_in_second_task, folder)
    before = sorted((folder / "evaluations").glob("*.json"))
    times = [path.stat().st_mtime_ns for path in before]
    finish(words, tmp_path)
    assert [path.stat().st_mtime_ns for path in before] == times, "finished scores are not computed again"
    records = [read_json(folder / "checkpoints" / f"record_{index}.json") for index in range(3)]
    assert [record["resumed"] for record in records] == [False, True, False]
    assert [record["steps"] for record in records] == [12, 12, 12]


def test_the_time_of_training_is_that_of_all_processes(
    killed_in_second_task: Path, words: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / killed_in_second_task.name
    shutil.copytree(killed_in_second_task, folder)
    checkpoint = folder / "checkpoints" / "task_1" / "checkpoint-4"
    state = read_json(checkpoint / "trainer_state.json")
    for entry in state["log_history"]:  # those of events have no time
        entry |= {key: entry[key] + 1000 for key in entry.keys() & {"seconds_of_steps"}}
    write_json(checkpoint / "trainer_state.json", state)
    mark_complete(checkpoint)
    finish(words, tmp_path)
    seconds = [read_json(folder / "checkpoints" / f"record_{index}.json")["train_seconds"] for index in range(3)]
    assert 1000 < seconds[1] < 1000 + 600
    assert 0 < seconds[0] < 600 > seconds[2] > 0
    assert read_json(folder / "metrics.json")["train_seconds"] == pytest.approx(sum(seconds))


def test_a_damaged_adapter_of_a_learned_task_is_one_clear_line(
    killed_in_second_task: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / killed_in_second_task.name
    shutil.copytree(killed_in_second_task, folder)
    adapter = folder / "checkpoints" / "after_0" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:50])
    assert main([*words, f"results_dir={tmp_path}"]) == 2
    assert "after_0 is damaged or gone, and no earlier adapter is kept" in capsys.readouterr().err


def test_a_damaged_score_is_one_clear_line(
    killed_in_second_task: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / killed_in_second_task.name
    shutil.copytree(killed_in_second_task, folder)
    score = folder / "evaluations" / "after_0_task_0.json"
    score.write_text(score.read_text(encoding="utf-8")[:20], encoding="utf-8")
    assert main([*words, f"results_dir={tmp_path}"]) == 2
    assert "after_0_task_0.json is damaged" in capsys.readouterr().err
    score.unlink()
    finish(words, tmp_path)


@both_methods
def test_scores_do_not_depend_on_when_the_process_was_started(words: list[str], tmp_path: Path, method: str) -> None:
    """Mixed precision leaves nothing on the model: a task scores the same after a restart."""
    words = [*words, "training.mixed_precision=bf16", "training.task_epochs=1"]
    finish(words, tmp_path)
    folder = tmp_path / method.lower()
    wanted = results(folder)
    (folder / "metrics.json").unlink()
    shutil.rmtree(tmp_path / ".scores")  # or nothing would be scored again
    for path in (folder / "evaluations").glob("after_2_*"):
        path.unlink()
    finish(words, tmp_path)
    assert results(folder) == wanted


@pytest.mark.slow
def test_the_command_in_a_shell(
    killed_in_second_task: Path, words: list[str], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / method.lower()
    shutil.copytree(killed_in_second_task, folder)
    command = [sys.executable, "-m", "himalaya_adapter.cli", *words, f"results_dir={tmp_path}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "task 3 of 3" in line:
            process.kill()
            break
    process.communicate()
    assert process.returncode == KILLED
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == str(folder / "report.html")
    monkeypatch.setattr(stream_runner, "held_out_text", held_out_text)  # as in the shell's process
    finish(words, tmp_path / "whole")
    assert results(folder) == results(tmp_path / "whole" / method.lower())
