"""The bounds of a stream: a frozen model, an adapter for each task, all tasks at once, some items kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TASKS, in_own_process, results, write_backbone, write_run, write_stream

from himalaya_adapter.cli import main
from himalaya_adapter.streams import Item, Task
from himalaya_adapter.streams.task import Source, TaskSpec
from himalaya_adapter.training.protocols import tasks_learnt_at


@pytest.fixture
def run(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., dict[str, Any]]:
    """Runs a method under a protocol; returns the folder's ``matrix``, ``metrics`` and the steps of each task."""
    backbone = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer)
    stream = write_stream(tmp_path)

    def run(protocol: str, method: str = "LORA", **training: Any) -> dict[str, Any]:
        config = write_run(tmp_path, backbone, stream, method, protocol=protocol, **training)
        assert main(["run", f"run={config}", f"results_dir={tmp_path / protocol}"]) == 0
        return results(tmp_path / protocol / method.lower())

    return run


def scores(result: dict[str, Any]) -> list[list[float]]:
    return [[cell["score"] for cell in row] for row in result["matrix"]["rows"]]


def steps(result: dict[str, Any]) -> list[int]:
    return [event["steps"] for event in result["events"] if event["event"] == "task_end"]


def test_frozen_learns_and_stores_nothing(run: Callable[..., dict[str, Any]]) -> None:
    result = run("frozen")
    before = [cell["score"] for cell in result["matrix"]["before"]]
    assert scores(result) == [before[: row + 1] for row in range(len(TASKS))]
    assert steps(result) == [0, 0, 0]
    assert result["metrics"]["stored_bytes"] == result["metrics"]["trainable_parameters"] == 0
    assert result["metrics"]["base_drift"] == 0
    assert result["metrics"]["protocol"] == "frozen"


def test_independent_adapters_forget_nothing_and_grow_with_the_tasks(run: Callable[..., dict[str, Any]]) -> None:
    result, sequential = run("independent"), run("sequential")
    matrix = scores(result)
    assert all(row[task] == matrix[task][task] for row in matrix for task in range(len(row)))
    assert steps(result) == steps(sequential) == [6, 6, 6]
    assert scores(sequential)[0] == matrix[0], "the first task is learnt alike"
    assert result["tensors"] != sequential["tensors"], "the last one by an adapter of its own"
    sizes = [event["stored_bytes"] for event in result["events"]]
    assert sizes == [sizes[0], 2 * sizes[0], 3 * sizes[0]]


def test_an_independent_adapter_is_that_of_a_stream_of_its_task(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Whatever was learnt before: nothing of it is left in the adapter of the last task."""
    result = run("independent")
    stream = (tmp_path / "stream.yaml").read_text(encoding="utf-8")
    reordered = stream.replace("Is {number} even?", "What of {number}, is it even?")
    assert reordered != stream
    (tmp_path / "stream.yaml").write_text(reordered, encoding="utf-8")
    config = tmp_path / "lora.yaml"
    assert main(["run", f"run={config}", "training.protocol=independent", f"results_dir={tmp_path / 'other'}"]) == 0
    other = results(tmp_path / "other" / "lora")
    assert other["tensors"] == result["tensors"]
    assert other["matrix"]["rows"][0] != result["matrix"]["rows"][0]


def test_joint_learns_all_tasks_at_once(run: Callable[..., dict[str, Any]]) -> None:
    result = run("joint", task_epochs=2)
    assert steps(result) == [36, 0, 0], "all items of all tasks, at the first"
    matrix = scores(result)
    assert all(row[task] == matrix[task][task] for row in matrix for task in range(len(row)))
    assert result["metrics"]["forgetting"] == 0


def test_replay_learns_kept_items_again_beside_the_new_ones(run: Callable[..., dict[str, Any]]) -> None:
    result, sequential = run("replay"), run("sequential")
    assert steps(result) == [6, 12, 12], "as many old items as new ones"
    assert scores(result)[0] == scores(sequential)[0], "there is nothing to replay at first"
    assert result["tensors"] != sequential["tensors"]


def test_replay_keeps_one_item_in_a_hundred() -> None:
    rest = {"kind": "generation", "template": "{text}", "target": "{answer}", "metric": "accuracy"}
    first, second, third = (
        Task(
            TaskSpec(name=name, language="en", source=Source(group=("text",)), max_new_tokens=1, **rest),
            train=tuple(Item(f"{name} {i}", "yes", str(i)) for i in range(items)),
            validation=(),
            test=(),
        )
        for name, items in (("a", 250), ("b", 90), ("c", 100))
    )
    *kept, new = tasks_learnt_at("replay", 2, [first, second, third])
    assert new is third
    assert [len(task.train) for task in kept] == [50, 50]
    assert [set(task.train) for task in kept] == [set(first.train[:3]), set(second.train[:1])]


@pytest.mark.parametrize(
    ("protocol", "method"),
    [
        pytest.param("independent", "LORA", marks=pytest.mark.slow),
        ("joint", "LORA"),
        ("independent", "HIMALAYA"),
    ],
)
def test_a_killed_bound_goes_on(
    run: Callable[..., dict[str, Any]], protocol: str, method: str, tmp_path: Path
) -> None:
    whole = run(protocol, method)
    words = ["run", f"run={tmp_path / f'{method.lower()}.yaml'}", f"results_dir={tmp_path / 'killed'}"]
    assert in_own_process(words, "record_1") == -9
    assert in_own_process(words) == 0
    assert results(tmp_path / "killed" / method.lower()) == whole


@pytest.mark.parametrize("protocol", ["independent", "frozen"])
def test_a_bound_works_for_a_method_with_a_stream_of_its_own(
    protocol: str, run: Callable[..., dict[str, Any]]
) -> None:
    result = run(protocol, "HIMALAYA")
    matrix = scores(result)
    assert all(row[task] == matrix[task][task] for row in matrix for task in range(len(row)))
    assert (result["metrics"]["base_drift"] == 0) == (protocol == "frozen")
    assert steps(result) == [0 if protocol == "frozen" else 6] * 3


@pytest.mark.parametrize("protocol", ["joint", "replay"])
def test_a_method_that_learns_tasks_by_name_cannot_mix_them(
    protocol: str,
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    tiny_tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbone = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer)
    config = write_run(tmp_path, backbone, write_stream(tmp_path), "HIMALAYA", protocol=protocol)
    assert main(["run", f"run={config}", f"results_dir={tmp_path / 'runs'}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        f"himalaya: training.protocol={protocol} of run 'himalaya': HIMALAYA learns each task under its"
    )
    assert not list((tmp_path).glob("runs/**/*.json"))
