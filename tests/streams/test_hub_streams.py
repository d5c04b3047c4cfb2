"""The streams of the hub: every entry reads parquet files of its data set's form; the hub itself is off by default."""

import math
import os
import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from datasets import ClassLabel, load_dataset
from hub_schemas import ROWS, SCHEMAS, write_split

from himalaya_adapter.evaluation.text_metrics import METRICS
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.streams import Stream, load_stream, stream_names
from himalaya_adapter.streams.catalogue import load_task, read_definition
from himalaya_adapter.streams.hub import BATCH, MIRROR_VARIABLE
from himalaya_adapter.streams.task import SPLITS, HubSource, Item, Task, TaskSpec

STREAMS = [name for name in stream_names() if any(spec.source.hub for spec in read_definition(name).tasks)]
MAIN = "continual_task_stream_25"
PAGE = Path(__file__).parents[2] / "docs" / "published-streams.md"
LIVE_VARIABLE = "HIMALAYA_TEST_HUB"  # set to 1 to run the tests that need the hub
COMMIT = re.compile(r"[0-9a-f]{40}")
UNPINNED = {"HHazard/trace-train-5000"}


@cache
def specs() -> dict[str, TaskSpec]:
    return {f"{name}/{spec.name}": spec for name in STREAMS for spec in read_definition(name).tasks}


def hub_of(spec: TaskSpec) -> HubSource:
    assert spec.source.hub is not None
    return spec.source.hub


def every_item(task: Task) -> list[Item]:
    return [item for split in SPLITS for item in task.split(split)]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    for spec in specs().values():
        hub = hub_of(spec)
        for split in hub.splits:
            path = folder / hub.id / (hub.config or "default") / f"{split}.parquet"
            if not path.exists():
                write_split(path, hub, split)
    return folder


@pytest.fixture(scope="module")
def streams(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stream]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MIRROR_VARIABLE, str(mirror))
        patch.setenv("HIMALAYA_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {name: load_stream(name, offline=True) for name in STREAMS}


def test_streams_of_the_hub() -> None:
    orders = [f"long_sequence_order_{number}" for number in (4, 5, 6)]
    assert [MAIN, *orders, "trace_order_1", "trace_order_2"] == STREAMS
    assert {name: len(read_definition(name).tasks) for name in STREAMS} == {
        **{MAIN: 25, "trace_order_1": 8, "trace_order_2": 8},
        **dict.fromkeys(orders, 15),
    }


def test_mixture_of_the_sources_stream() -> None:
    tasks = read_definition(MAIN).tasks
    languages = {code for spec in tasks for code in spec.language.split("-")} - {"code", "python"}
    assert len(languages) == 10
    kinds = [spec.kind for spec in tasks]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        **{"classification": 14, "generation": 5},
        **{"extraction": 3, "code": 3},
    }
    assert all(spec.caps.train is not None and spec.caps.train <= 50_000 for spec in tasks)
    assert [spec.name for spec in tasks if spec.label_noise] == ["noisy_question"]
    for one, other in pairwise(tasks):
        assert (one.kind, one.language) != (other.kind, other.language)


def test_orders_hold_the_same_tasks() -> None:
    for names in (
        ["long_sequence_order_4", "long_sequence_order_5", "long_sequence_order_6"],
        ["trace_order_1", "trace_order_2"],
    ):
        first, *others = [{spec.name: spec for spec in read_definition(name).tasks} for name in names]
        for other in others:
            assert other == first
            assert list(other) != list(first)


@pytest.mark.parametrize("name", specs())
def test_entries_are_pinned_complete_and_nameless(name: str) -> None:
    spec = specs()[name]
    hub = hub_of(spec)
    assert COMMIT.fullmatch(hub.revision) or hub.id in UNPINNED
    assert spec.metric in METRICS
    assert None not in (spec.caps.train, spec.caps.validation, spec.caps.test), "memory stays flat"
    text = (spec.template + spec.target).lower()
    assert not [part for part in (spec.name, *re.split(r"[/_-]", hub.id)) if f" {part.lower()} " in text]
    column = hub.fields.get("label")
    kind = SCHEMAS[hub.id, hub.config][column] if column else None
    if isinstance(kind, ClassLabel):
        assert set(spec.label_of) == {str(number) for number in range(kind.num_classes)}


def test_every_entry_reads_a_file_of_its_form(streams: dict[str, Stream]) -> None:
    for name, stream in streams.items():
        for task in stream.tasks:
            assert not task.skipped, (name, task.name, task.skipped)
            assert min(len(task.split(split)) for split in SPLITS) >= 2, (name, task.name)
            found = {item.target for item in every_item(task)}
            label_of = task.spec.label_of.values()
            assert found <= set(label_of) if label_of else len(found) > 2, (name, task.name)
            for item in every_item(task):
                assert item.prompt == item.prompt.rstrip() != ""
                assert "{" not in item.prompt + item.target


def test_held_out_items_come_from_the_held_out_split(streams: dict[str, Stream]) -> None:
    for stream in streams.values():
        for task in stream.tasks:
            hub = hub_of(task.spec)
            if hub.held_out and hub.id not in ("google-research-datasets/tydiqa",):
                prompts = {split: "\n".join(item.prompt for item in task.split(split)) for split in SPLITS}
                assert f"{hub.held_out} " not in prompts["train"]
                assert f"{hub.train} " not in prompts["validation"] + prompts["test"]
            sources = [{item.source for item in task.split(split)} for split in SPLITS]
            assert sum(map(len, sources)) == len(set.union(*sources)), task.name


def test_examples_of_nested_columns(streams: dict[str, Stream]) -> None:
    def one(stream: str, task: str, number: int) -> tuple[str, str]:
        (found,) = (found for found in streams[stream].tasks if found.name == task)
        return next((item.prompt, item.target) for item in found.train if re.search(rf" {number}\b", item.prompt))

    number = 3
    assert one(MAIN, "translation_german", number) == (
        "English: train translation 3 en\nGerman:",
        "train translation 3 de",
    )
    assert one(MAIN, "question_swahili", number) == (
        "Maandishi: train context 3\nSwali: train question 3\nJibu:",
        "train answers text 0 3",
    )
    assert one(MAIN, "everyday_choice", number) == (
        "train question 3\nA. train choices text 0 3\nB. train choices text 1 3\nC. train choices text 2 3\nAnswer:",
        "D",
    )
    assert one(MAIN, "function_description", number) == (
        "train code_tokens 0 3 train code_tokens 1 3 train code_tokens 2 3\n# What it does:",
        "train docstring_tokens 0 3 train docstring_tokens 1 3 train docstring_tokens 2 3",
    )
    assert one("long_sequence_order_5", "copa", number) == (
        "train premise 3\nWhat is the effect?\nA. train choice1 3\nB. train choice2 3\nAnswer:",
        "B",
    )
    assert one("long_sequence_order_6", "boolq", number) == (
        "Text: train passage 3\nQuestion: train question 3?\nAnswer:",
        "no",
    )
    assert one("trace_order_2", "scienceqa", number)[1] == "A"


def test_only_training_labels_are_noisy(streams: dict[str, Stream]) -> None:
    noisy = next(task for task in streams[MAIN].tasks if task.name == "noisy_question")
    clean = next(task for task in streams["long_sequence_order_4"].tasks if task.name == "boolq")
    assert (noisy.validation, noisy.test) == (clean.validation, clean.test)
    right = {item.prompt: item.target for item in clean.train}
    wrong = sum(right[item.prompt] != item.target for item in noisy.train)
    assert 0.05 < wrong / ROWS < 0.4


@pytest.mark.hub
@pytest.mark.skipif(os.environ.get(LIVE_VARIABLE) != "1", reason=f"needs the hub; set {LIVE_VARIABLE}=1")
@pytest.mark.parametrize("name", specs())
def test_the_hub_has_the_entry(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision exists, its columns have the declared types, and its first rows give items."""
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("HIMALAYA_CACHE", str(tmp_path))
    stream, task = name.split("/")
    hub = hub_of(specs()[name])
    for split in hub.splits:
        rows = load_dataset(hub.id, hub.config, split=split, revision=hub.revision, streaming=True)
        features = rows.features or next(rows.with_format("arrow").iter(BATCH)).schema
        for column, kind in SCHEMAS[hub.id, hub.config].items():
            assert column in (features if rows.features else features.names)
            assert not rows.features or features[column] == kind, (split, column)
    loaded = load_task(stream, task)
    assert min(len(loaded.split(split)) for split in SPLITS) > 0
    if loaded.spec.labels:
        assert {item.target for item in loaded.train} == set(loaded.spec.labels)


def test_the_commands_for_published_streams_are_runs_of_the_size_that_the_page_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    lines = re.findall(r"^himalaya run (.*)$", page, flags=re.M)
    assert len(lines) == 2
    for line in lines:
        run = compose_run(shlex.split(line)).run
        check_run(run)
        caps = [spec.caps.train for spec in read_definition(run.dataset.name).tasks]
        assert None not in caps
        steps = sum(math.ceil(cap / run.training.batch_size) for cap in caps)
        tokens = sum(caps) * run.dataset.max_seq_length / 1e6
        assert f"| `{run.dataset.name}` | {sum(caps):,} | {steps:,} | {tokens:.1f} million |" in page
    assert len(page.split()) <= 500
