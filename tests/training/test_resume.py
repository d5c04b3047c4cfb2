"""A run that is killed again and again ends as one that never was: same scores, same adapter, bit for bit."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import in_own_process, results, write_backbone, write_run, write_stream

from himalaya_adapter.cli import main

KILLED = -9
# Two epochs, so that a task is also resumed in the middle of its second one.
TRAINING = {"task_epochs": 2, "save_steps": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(params=["HIMALAYA", "LORA"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def words(place: Path, method: str, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> list[str]:
    """The command line of a run, without its ``results_dir=``."""
    backbone = place / "backbone"
    if not backbone.is_dir():
        write_backbone(backbone, tiny_model, tiny_tokenizer)
        write_stream(place)
    return ["run", f"run={write_run(place, backbone, place / 'stream.yaml', method, **TRAINING)}"]


@pytest.fixture
def uninterrupted(place: Path, method: str, words: list[str]) -> Path:
    """The folder of a run that was never killed."""
    folder = place / "uninterrupted" / method.lower()
    if not (folder / "metrics.json").is_file():
        assert in_own_process([*words, f"results_dir={folder.parent}"]) == 0
    return folder


def test_killed_at_random_writes(uninterrupted: Path, words: list[str], tmp_path: Path, method: str) -> None:
    chance = random.Random(f"writes {method}")
    kills = 0
    while in_own_process([*words, f"results_dir={tmp_path}"], write=chance.randint(1, 90)) == KILLED:
        kills += 1
        assert not (tmp_path / method.lower() / "metrics.json").is_file() or kills > 3
    assert kills >= 5
    assert results(tmp_path / method.lower()) == results(uninterrupted)


def test_killed_at_random_times(uninterrupted: Path, words: list[str], tmp_path: Path, method: str) -> None:
    chance = random.Random(f"times {method}")
    statuses = []
    while 0 not in statuses:
        statuses.append(in_own_process([*words, f"results_dir={tmp_path}"], seconds=chance.uniform(0.5, 2.0)))
    assert set(statuses[:-1]) == {KILLED}
    assert results(tmp_path / method.lower()) == results(uninterrupted)
