"""Archives of a stream: fetched once, going on after an interruption; patterns choose files."""

import hashlib
from pathlib import Path

import pytest
from wheels import build_wheel

from himalaya_adapter import packages
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams import load_stream
from himalaya_adapter.streams.catalogue import fetch_stream

NAMES = ("first", "second")
TASK = """
  - {name: NAME, language: en, kind: generation, metric: chrf, max_new_tokens: 4,
     template: "{text}:", target: "{answer}",
     source: {archive: NAME, files: ["NAME/*.jsonl", "!*/tests/*"], group: text}}"""


def rows(place: str) -> bytes:
    return "".join(f'{{"text": "{place} {number}", "answer": "{number}"}}\n' for number in range(60)).encode()


@pytest.fixture
def stream(only_index: Path, tmp_path: Path) -> str:
    places = ("rows.jsonl", "tests/rows.jsonl")
    wheels = {
        name: build_wheel(only_index, name, {f"{name}/{one}": rows(f"{name}/{one}") for one in places})
        for name in NAMES
    }
    archives = "".join(
        f"  {name}: {{requirement: {name}==1.0, sha256: {hashlib.sha256(wheel.read_bytes()).hexdigest()},"
        " megabytes: 1, licence: none}\n"
        for name, wheel in wheels.items()
    )
    path = tmp_path / "mine.yaml"
    path.write_text(f"archives:\n{archives}tasks:{''.join(TASK.replace('NAME', name) for name in NAMES)}\n")
    return str(path)


def test_an_interrupted_fetch_goes_on(stream: str, only_index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    away = (only_index / "second-1.0-py3-none-any.whl").rename(only_index / "away")
    with pytest.raises(HimalayaError, match=r"second==1\.0 is not in the cache"):
        fetch_stream(stream)
    away.rename(only_index / "second-1.0-py3-none-any.whl")
    (only_index / "first-1.0-py3-none-any.whl").unlink()
    capfd.readouterr()
    assert list(fetch_stream(stream)) == list(NAMES), "the first one is not fetched again"
    out, err = capfd.readouterr()
    assert out == ""
    assert "second-1.0" in err
    assert "first-1.0" not in err


def test_nothing_is_shown_when_all_is_there(stream: str, capfd: pytest.CaptureFixture[str]) -> None:
    fetch_stream(stream)
    capfd.readouterr()
    fetch_stream(stream)
    load_stream(stream)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_archive_is_fetched_again(stream: str) -> None:
    path = fetch_stream(stream)["second"]
    digest = packages.file_sha256(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert packages.file_sha256(fetch_stream(stream)["second"]) == digest


def test_offline_names_the_archive_that_is_missing(stream: str) -> None:
    with pytest.raises(HimalayaError, match=r"first==1\.0 is not in the cache .* offline use was asked for"):
        load_stream(stream, offline=True)


def test_excluded_files_are_not_read(stream: str) -> None:
    for task in load_stream(stream).tasks:
        assert {item.source.rsplit(" ", 1)[0] for item in task.train} == {f"{task.name}/rows.jsonl"}
