"""The example of a user's own stream in docs/own-stream.md, followed word by word."""

import json
import re
from pathlib import Path

import pytest

from himalaya_adapter import cli
from himalaya_adapter.streams import load_stream
from himalaya_adapter.streams.catalogue import origin_of, read_definition

PAGE = (Path(__file__).parent.parent.parent / "docs" / "own-stream.md").read_text(encoding="utf-8")


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two files of the page, with ninety rows, in the working folder."""
    (definition,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    (row,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.S)
    rows = [
        json.loads(row) | {"id": number, "text": f"ticket {number}", "team": "dev" if number % 3 else "ops"}
        for number in range(90)
    ]
    monkeypatch.chdir(tmp_path)
    Path("tickets.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    Path("my_stream.yaml").write_text(definition, encoding="utf-8")
    return "my_stream.yaml"


def commands() -> list[list[str]]:
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.S)
    return [line.split()[1:] for line in shown.splitlines()]


def test_the_documented_stream_loads(stream: str) -> None:
    (task,) = load_stream(stream).tasks
    assert {item.target for item in task.train} == {"operations", "development"}
    assert len(task.train) + len(task.validation) + len(task.test) == 90
    assert origin_of(task.spec, read_definition(stream))[0] == "local files: tickets.jsonl"


def test_the_first_command_shows_what_was_read(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(commands()[0]) == 0
    assert "operations" in capsys.readouterr().out


@pytest.mark.slow
def test_all_commands_run(stream: str) -> None:
    for words in commands():
        assert cli.main([*words, "mode=trial"] if words[0] == "run" else words) == 0, words
    assert Path("outputs/mine/comparison/report.html").is_file()
