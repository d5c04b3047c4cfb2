"""Data sets of the hub: fetched whole, read flat, and reported in one line when something is missing or wrong."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams import Limits, load_stream
from himalaya_adapter.streams.catalogue import fetch_stream, load_task, origin_of, read_definition
from himalaya_adapter.streams.hub import MIRROR_VARIABLE
from himalaya_adapter.streams.task import SPLITS

ID = "someone/pairs"
HUB = {
    **{"id": ID, "revision": "main", "train": "train", "held_out": "test", "licence": "CC0"},
    "fields": {"text": "pair.text", "answer": "pair.answers.0"},
}
ENTRY = {
    **{"name": "pairs", "language": "en", "kind": "generation", "metric": "chrf", "max_new_tokens": 4},
    **{"template": "{text}:", "target": "{answer}", "source": {"hub": HUB, "group": "text"}},
}
Writer = Callable[..., str]


def table(split: str, rows: int) -> pyarrow.Table:
    pairs = [{"text": f"{split} {number}", "answers": [f"answer {number}", "other"]} for number in range(rows)]
    return pyarrow.table({"pair": pairs, "unread": list(range(rows))})


def write_parquet(path: Path, rows: pyarrow.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(rows, path, row_group_size=10_000)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with one data set, and no cache."""
    for split, rows in {"train": 300, "test": 120}.items():
        write_parquet(tmp_path / "mirror" / ID / "default" / f"{split}.parquet", table(split, rows))
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    monkeypatch.setenv("HIMALAYA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "mirror" / ID / "default"


@pytest.fixture
def write(tmp_path: Path, mirror: Path) -> Writer:
    def write(hub: dict[str, Any] | None = None, **changes: Any) -> str:
        entry = ENTRY | {"source": {"hub": HUB | (hub or {}), "group": "text"}} | changes
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"tasks": [entry]}), encoding="utf-8")
        return str(path)

    return write


def test_splits_come_from_the_hubs_splits(write: Writer) -> None:
    (task,) = load_stream(write(), offline=True).tasks
    assert len(task.train) == 300
    assert len(task.validation) + len(task.test) == 120
    assert all(item.prompt.startswith("train ") for item in task.train)
    assert all(item.prompt.startswith("test ") for item in task.validation + task.test)
    assert {item.target for item in task.train} == {f"answer {number}" for number in range(300)}
    (limited,) = load_stream(write(), limits=Limits(train=9, validation=3, test=5)).tasks
    assert (limited.train, limited.validation) == (task.train[:9], task.validation[:3])


def test_without_a_held_out_split_one_is_cut(write: Writer, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    hub = {key: value for key, value in HUB.items() if key != "held_out"}
    path.write_text(yaml.safe_dump({"tasks": [ENTRY | {"source": {"hub": hub, "group": "text"}}]}), encoding="utf-8")
    (task,) = load_stream(str(path), offline=True).tasks
    assert sum(len(task.split(split)) for split in SPLITS) == 300
    assert len(task.test) > 40


def test_rows_limits_what_is_read_of_a_larger_file_in_the_mirror(write: Writer) -> None:
    task = load_stream(write({"rows": 20})).tasks[0]
    assert {item.source for item in task.train} <= {f"train {number}" for number in range(20)}


def test_card_tells_data_set_revision_and_licence(write: Writer) -> None:
    path = write()
    task = load_task(path, "pairs", offline=True)
    told = origin_of(task.spec, read_definition(path))
    assert told == ("someone/pairs (default) at main: train, test", "CC0")
    assert task.skipped == {}


@pytest.mark.parametrize("offline", [True, False])
def test_no_hub(mirror: Path, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # without asking six times
    with pytest.raises(HimalayaError) as error:
        load_stream("continual_task_stream_25", offline=offline)
    message = str(error.value)
    assert "\n" not in message
    assert "package_stream_25 needs no hub" in message
    if offline:
        assert all(part in message for part in ("translation_german", "inference_arabic", "offline use was asked for"))
    else:
        assert "cannot fetch split 'train' of wmt/wmt14 (de-en, revision b199e4" in message
        assert "Couldn't reach" in message


def test_only_the_tasks_that_are_missing_are_named(write: Writer, mirror: Path, tmp_path: Path) -> None:
    other = ENTRY | {"name": "others", "source": {"hub": HUB | {"id": "someone/others"}, "group": "text"}}
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump({"tasks": [ENTRY, other]}), encoding="utf-8")
    with pytest.raises(HimalayaError, match=r"^the data of others is neither in the cache nor in"):
        load_stream(str(path), offline=True)


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        ({"fields": {"text": "pairs.text", "answer": "pair"}}, "unknown column .* 'pairs'; did you mean 'pair'"),
        ({"fields": {"text": "pair.txt", "answer": "pair"}}, r"unknown step .* 'txt'; did you mean 'text'"),
        ({"fields": {"text": "pair.text.0", "answer": "pair"}}, "unknown step in the path 'pair.text.0'"),
        ({"fields": {"text": "pair.answers.last", "answer": "pair"}}, r"'last'.*known: 0, joined, lettered"),
        ({"fields": {"text": "pair.text"}}, "unknown field .* 'answer'"),
        ({"fields": ["text"]}, "'source.hub.fields' of .* expected field names"),
        ({"fields": {"text": "pair.text", "answer": "pair.answers.5"}}, "row 1 .* has no value in field 'answer'"),
        ({"revision": 7}, "'source.hub.revision' of .* expected non-empty text"),
        ({"streaming": True}, "unknown key of .* 'source.hub.streaming'"),
        ({"rows": 0}, "'source.hub.rows' of .* found 0"),
        ({"config": "../../mine"}, "'source.hub.config' of .* expected the name of a configuration or a split"),
        ({"train": "/etc/train"}, "'source.hub.train' of .* expected the name of a configuration or a split"),
    ],
)
def test_mistakes_in_an_entry(write: Writer, hub: dict[str, Any], message: str) -> None:
    with pytest.raises(HimalayaError, match=message) as error:
        load_stream(write(hub), offline=True)
    assert "\n" not in str(error.value)


def test_hub_and_files_exclude_each_other(write: Writer) -> None:
    with pytest.raises(HimalayaError, match="needs 'files' or 'hub'"):
        load_stream(write(source={"hub": HUB, "files": "a.jsonl", "group": "text"}))


def test_a_damaged_file(write: Writer, mirror: Path) -> None:
    (mirror / "test.parquet").write_bytes((mirror / "test.parquet").read_bytes()[:-9])
    with pytest.raises(HimalayaError, match=r"cannot read .*test\.parquet.*delete it and fetch again"):
        load_stream(write(), offline=True)


def test_bad_rows_stop_or_are_skipped_and_counted(write: Writer, mirror: Path) -> None:
    bad = [
        *({"text": f"bad {number}", "answers": [" "]} for number in range(4)),
        *({"text": f"none {number}", "answers": []} for number in range(3)),
        *({"text": f"broken {number}", "answers": ["caf\ufffd"]} for number in range(2)),
    ]
    rows = [*table("train", 300).column("pair").to_pylist(), *bad]
    write_parquet(mirror / "train.parquet", pyarrow.table({"pair": rows}))
    with pytest.raises(HimalayaError, match=r"row 301 of split 'train' of someone/pairs .* has an empty target"):
        load_stream(write(), offline=True)
    task = load_task(write(on_bad_item="skip"), "pairs", offline=True)
    assert len(task.train) == 300
    assert task.skipped == {"empty": 4, "no value": 3, "not UTF-8": 2}


def test_fetching_stores_what_is_read(
    write: Writer, mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The library reads a folder as it reads a repository of the hub."""
    folder = tmp_path / "repository"
    for split in ("train", "test"):
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", table(split, 2500))
    stream = write({"id": str(folder), "rows": 1200})
    paths = fetch_stream(stream)
    assert [pyarrow.parquet.read_metadata(path).num_rows for path in paths.values()] == [1200, 2500]
    assert [pyarrow.parquet.read_schema(path).names for path in paths.values()] == [["pair"], ["pair"]]
    assert capfd.readouterr().out == ""
    (task,) = load_stream(stream, offline=True).tasks
    assert len(task.train) == 1200
    with pytest.raises(HimalayaError, match=r"cannot fetch split 'train' of .*'pears'.* not in .*'pair'"):
        fetch_stream(write({"id": str(folder), "fields": {"text": "pears", "answer": "pears"}}))
    with pytest.raises(HimalayaError, match="cannot fetch split 'dev' of ") as error:
        fetch_stream(write({"id": str(folder), "held_out": "dev"}))
    assert "\n" not in str(error.value)
    lines = tmp_path / "lines" / "data"
    lines.mkdir(parents=True)
    (lines / "train.jsonl").write_text(json.dumps({"pair": {"text": "a", "answers": ["b"]}}) + "\n")
    (lines / "test.jsonl").write_text("")
    with pytest.raises(HimalayaError, match=r"cannot fetch split 'test' of .*: the split has no rows; "):
        fetch_stream(write({"id": str(lines.parent)}))
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.slow  # tests/streams/test_splits.py measures the memory of a cut in the suite
def test_memory_stays_flat(write: Writer, mirror: Path) -> None:
    """60 000 rows of 2 kB are 120 MB; 500 of them are kept."""
    rows = 60_000
    pairs: list[dict[str, Any]] = [{"text": "", "answers": ["a"]} for _ in range(10_000)]
    schema = table("train", 1).select(["pair"]).schema
    with pyarrow.parquet.ParquetWriter(mirror / "train.parquet", schema) as writer:
        for start in range(0, rows, 10_000):
            for number, pair in enumerate(pairs, start):
                pair["text"] = f"{number} {os.urandom(1000).hex()}"  # does not compress to nothing
            writer.write_table(pyarrow.table({"pair": pairs}, schema=schema), row_group_size=1000)
    del pairs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (task,) = load_stream(write(caps={"train": 500, "validation": 20, "test": 20}), offline=True).tasks
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert len(task.train) == 500
    assert grown < 40, f"{grown:.0f} MB"
