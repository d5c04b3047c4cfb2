"""A run goes on only with what it was begun with, and believes nothing on the disk that was changed since."""

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TASKS, run_words

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.identity import sealed
from himalaya_adapter.report.run_folder import read_run
from himalaya_adapter.report.run_tables import environment
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.training.stream_runner import run_stream

SCORE, RECORD = "evaluations/after_0_task_0.json", "checkpoints/record_0.json"


class Stopped(Exception):
    """After the first task."""


def stop(rows: list[Any]) -> None:
    raise Stopped


@pytest.fixture(scope="module")
def words(place: Path) -> list[str]:
    return run_words(place, "LORA", max_updates_per_task=1)


@pytest.fixture(scope="module")
def stopped(place: Path, words: list[str]) -> Path:
    """A run that has learnt one of three tasks; tests copy it."""
    with pytest.raises(Stopped):
        run_stream(compose_run(words[1:]).run, place / "stopped", after_task=stop)
    return place / "stopped" / "lora"


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "lora")


def go_on(words: list[str], copied: Path) -> Path:
    return run_stream(compose_run(words[1:]).run, copied.parent)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = read_json(path)
    edit(content)
    write_json(path, content)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ("metric: accuracy", "metric: macro_f1", "tasks.parity.metric='accuracy', which is 'macro_f1' now"),
        (
            "- 'yes'\n  - 'no'",
            "- 'no'\n  - 'yes'",
            r"tasks.parity.labels=\['yes', 'no'\], which is \['no', 'yes'\] now",
        ),
        ("max_new_tokens: 6", "max_new_tokens: 5", "tasks.echo.max_new_tokens=6, which is 5 now"),
        ("Answer:", "Answer now:", "data_hashes.parity.train="),
    ],
)
def test_a_task_that_is_asked_or_scored_otherwise_now_is_refused_by_name(
    before: str, now: str, told: str, place: Path, words: list[str], copied: Path
) -> None:
    stream = place / "stream.yaml"
    written = stream.read_text(encoding="utf-8")
    assert before in written
    stream.write_text(written.replace(before, now), encoding="utf-8")
    try:
        with pytest.raises(HimalayaError, match=f"was begun with {told}"):
            go_on(words, copied)
    finally:
        stream.write_text(written, encoding="utf-8")


def test_another_precision_is_refused(words: list[str], copied: Path) -> None:
    change(copied / "environment.json", lambda environment: environment.update(dtype="bfloat16"))
    with pytest.raises(HimalayaError, match="was begun with dtype='bfloat16', which is 'float32' now"):
        go_on(words, copied)


def test_a_folder_of_another_version_of_the_scoring_is_refused(words: list[str], copied: Path) -> None:
    change(copied / "environment.json", lambda environment: environment.pop("scoring"))
    with pytest.raises(HimalayaError, match="was begun with scoring=None, which is 3 now"):
        go_on(words, copied)


def test_another_machine_or_version_is_told_and_both_are_kept(
    words: list[str], copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = read_json(copied / "environment.json")
    change(copied / "environment.json", lambda environment: environment.update(torch="1.0", earlier=[{"threads": 64}]))
    with pytest.raises(Stopped):
        run_stream(compose_run(words[1:]).run, copied.parent, after_task=stop)
    (told,) = [record.getMessage() for record in caplog.records if "goes on with" in record.getMessage()]
    assert f"goes on with torch={now['torch']!r} ('1.0' before): " in told
    earlier = [{"threads": 64}, {"torch": "1.0"}]
    assert read_json(copied / "environment.json") == {**now, "earlier": earlier}
    caplog.clear()
    folder = go_on(words, copied)
    assert "goes on with" not in caplog.text
    assert read_json(folder / "environment.json")["earlier"] == earlier
    assert "earlier" not in str(environment([read_run(folder)]))


def test_advice_on_a_damaged_file_is_what_mends_it(words: list[str], copied: Path) -> None:
    """The adapter of an earlier task is no longer kept, so its scores cannot be computed again."""
    again, anew = "delete this file, and the same command computes it again", "start the run anew with overwrite=true"
    (go_on(words, copied) / "metrics.json").unlink()
    shutil.rmtree(copied.parent / ".scores")
    for path, mend in (
        ("evaluations/after_before_task_0.json", again),
        ("evaluations/after_2_task_0.json", again),
        (SCORE, anew),
        (RECORD, anew),
        ("environment.json", anew),
    ):
        content = (copied / path).read_bytes()
        (copied / path).write_bytes(content[:20])
        with pytest.raises(HimalayaError, match=f"{path} is damaged .*: {mend}$"):
            go_on(words, copied)
        if mend == again:
            (copied / path).unlink()
            (go_on(words, copied) / "metrics.json").unlink()
        else:
            (copied / path).write_bytes(content)


@pytest.mark.parametrize(
    ("path", "edit"),
    [
        (SCORE, lambda score: score.update(score=(score["score"] + 0.25) % 1, low=0.0, high=1.0)),
        (SCORE, lambda score: score["item_scores"].__setitem__(0, 4.0)),
        (SCORE, lambda score: score.pop("metric")),
        (SCORE, lambda score: score.pop("sha256")),
        (RECORD, lambda record: record.update(stored_bytes=1)),
    ],
    ids=["another score", "no score of an item", "missing", "no hash", "record"],
)
def test_what_was_changed_since_is_refused(
    path: str, edit: Callable[[dict[str, Any]], object], words: list[str], copied: Path
) -> None:
    change(copied / path, edit)
    with pytest.raises(HimalayaError, match=rf"{Path(path).name} is damaged"):
        go_on(words, copied)


def test_all_of_a_run_may_be_read_by_whoever_may_read_its_config(words: list[str], copied: Path) -> None:
    folder = go_on(words, copied)
    assert [task["name"] for task in read_json(folder / "metrics.json")["tasks"]] == list(TASKS)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert set(modes.values()) == {modes["config.yaml"]}
    assert not list(folder.parent.rglob(".*.tmp"))


def test_a_hash_is_that_of_the_content_in_any_order() -> None:
    assert sealed({"a": 1, "b": [2.5, None]}) == sealed({"b": [2.5, None], "a": 1})
    assert sealed({"a": 1})["sha256"] != sealed({"a": 2})["sha256"]


@pytest.mark.parametrize("options", ["init_lora_weights: pissa", "layer_replication: [[0, 2], [1, 2]]"])
def test_an_adapter_that_changes_the_frozen_model_is_refused(options: str, words: list[str], tmp_path: Path) -> None:
    """Its frozen model would be scored as the backbone, and the score kept for other runs."""
    launch = compose_run([*words[1:], f"model.adapter.options={{{options}}}"])
    with pytest.raises(HimalayaError, match=r"^model\.adapter\.options change the backbone itself"):
        run_stream(launch.run, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_target_that_is_too_long_is_found_before_anything_is_learnt(words: list[str], tmp_path: Path) -> None:
    run = compose_run([*words[1:], "dataset.max_seq_length=9"]).run
    with pytest.raises(HimalayaError, match=r"^task 'echo': the target .* \(dataset\.max_seq_length\), which must be"):
        run_stream(run, tmp_path)
    assert not list(tmp_path.rglob("*.json"))
