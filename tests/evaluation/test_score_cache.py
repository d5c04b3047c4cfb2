"""The cache answers for the same adapter, items, settings and code, and for nothing else."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from himalaya_adapter.evaluation.score_cache import ADAPTER_FILES, ScoreCache, file_hashes
from himalaya_adapter.streams.task import Item, Limits, Source, Task, TaskSpec

SETTINGS = {"batch_size": 8, "max_length": 64}
SCORE = {"score": 0.5, "item_scores": [0.0, 1.0], "seconds": 2.5, "metric": "accuracy"}


def make_task(test_hash: str = "abc", target: str = "ja", **changes: Any) -> Task:
    spec = TaskSpec(
        name="wetter",
        language="de",
        kind="classification",
        source=Source(archive=None, files=(), reader="jsonl", options={}, where={}, group=()),
        template="",
        target="",
        metric="accuracy",
        label_of={"ja": "ja", "nein": "nein"},
        max_new_tokens=4,
        caps=Limits(),
        max_prompt_characters=None,
        max_target_characters=None,
        description="",
    )
    items = (Item("Regnet es?", target, "1"),)
    spec = dataclasses.replace(spec, **changes)
    return Task(spec=spec, train=items, validation=items, test=items, hashes={"test": test_hash, "validation": "def"})


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ADAPTER_FILES:
        (folder / name).write_text(name, encoding="utf-8")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path / "scores", SETTINGS)


def test_what_was_written_is_read_by_another_run(cache: ScoreCache, adapter: Path) -> None:
    for answers in (None, file_hashes(adapter)):
        identity = cache.identity(make_task(), answers)
        assert cache.read(identity) is None
        cache.write(identity, SCORE)
        other_run = ScoreCache(cache.folder, dict(SETTINGS))
        assert other_run.read(other_run.identity(make_task(), answers)) == SCORE


def test_an_edited_score_counts_as_none(cache: ScoreCache) -> None:
    identity = cache.identity(make_task(), None)
    cache.write(identity, SCORE)
    (path,) = cache.folder.iterdir()
    path.write_text(path.read_text(encoding="utf-8").replace("0.5", "0.6"), encoding="utf-8")
    assert cache.read(identity) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda cache, adapter: cache.identity(make_task(test_hash="abd"), file_hashes(adapter)),
        lambda cache, adapter: cache.identity(make_task(), file_hashes(adapter), "validation"),
        lambda cache, adapter: cache.identity(make_task(metric="macro_f1"), file_hashes(adapter)),
        lambda cache, adapter: cache.identity(make_task(label_of={"nein": "nein", "ja": "ja"}), file_hashes(adapter)),
        lambda cache, adapter: cache.identity(
            make_task(name="regen"), file_hashes(adapter)
        ),  # an adapter is told the name
        lambda cache, adapter: cache.identity(make_task(max_new_tokens=5), file_hashes(adapter)),
        lambda cache, adapter: cache.identity(
            make_task(target="ja\nnein"), file_hashes(adapter)
        ),  # answers may now span lines
        lambda cache, adapter: cache.identity(make_task(), None),
        lambda cache, adapter: ScoreCache(cache.folder, {**SETTINGS, "batch_size": 4}).identity(
            make_task(), file_hashes(adapter)
        ),
    ],
)
def test_anything_else_is_another_score(change: Callable[..., Any], cache: ScoreCache, adapter: Path) -> None:
    cache.write(cache.identity(make_task(), file_hashes(adapter)), SCORE)
    assert cache.read(change(cache, adapter)) is None


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_changed_adapter_is_another_score(name: str, cache: ScoreCache, adapter: Path) -> None:
    cache.write(cache.identity(make_task(), file_hashes(adapter)), SCORE)
    (adapter / name).write_text("changed", encoding="utf-8")
    assert cache.read(cache.identity(make_task(), file_hashes(adapter))) is None


@pytest.mark.parametrize("content", ['{"of": {', "[]", '{"of": {}, "score": {"score": 1.0}}', "\x00\x00"])
def test_a_damaged_or_foreign_entry_is_no_score(content: str, cache: ScoreCache) -> None:
    identity = cache.identity(make_task(), None)
    cache.write(identity, SCORE)
    (path,) = cache.folder.iterdir()
    path.write_text(content, encoding="utf-8")
    assert cache.read(identity) is None
    cache.write(identity, SCORE)
    assert cache.read(identity) == SCORE
