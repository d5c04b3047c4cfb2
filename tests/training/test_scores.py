"""Which cells of the matrix a run measures, what it shares with other runs, and what evaluation is said to cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TASKS, results, write_backbone, write_run, write_stream

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.report import write_comparison, write_run_report
from himalaya_adapter.storage import read_json
from himalaya_adapter.training import stream_scores
from himalaya_adapter.training.stream_runner import run_stream

# Room for all tasks: without an eviction no task's answers change once it is learnt.
ROOM = "model.adapter.options.elastic_atoms=9"


@pytest.fixture
def run(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., Path]:
    """``run(method, *words)`` runs a method into ``tmp_path / "out"``; returns its folder."""
    backbone = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer)
    stream = write_stream(tmp_path)

    def run(method: str, *words: str, folder: str = "out", overwrite: bool = False) -> Path:
        written = write_run(tmp_path, backbone, stream, method, max_updates_per_task=2)
        config = compose_run([f"run={written}", *words]).run
        return run_stream(config, tmp_path / folder, overwrite=overwrite)

    return run


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that were really scored, in order."""
    names: list[str] = []

    def counting(model: Any, tokenizer: Any, task: Any, **options: Any) -> Any:
        names.append(task.name)
        return evaluate_task(model, tokenizer, task, **options)

    monkeypatch.setattr(stream_scores, "evaluate_task", counting)
    return names


def test_the_last_row_alone(run: Callable[..., Path], evaluated: list[str]) -> None:
    whole = run("LORA", folder="whole")
    assert len(evaluated) == 3 + 6
    evaluated.clear()
    folder = run("LORA", "evaluation.rows=last")
    assert evaluated == [*TASKS, TASKS[0], TASKS[1], *TASKS]
    matrix, found = read_json(folder / "matrix.json"), read_json(folder / "metrics.json")
    assert [[cell is not None for cell in row] for row in matrix["rows"]] == [[True], [False, True], [True] * 3]
    wanted = read_json(whole / "metrics.json")
    for name in ("average_accuracy", "learning_accuracy", "backward_transfer", "frozen_accuracy"):
        assert found[name] == wanted[name]
    assert wanted["measured_rows"] == [1, 2, 3]
    assert found["measured_rows"] == [point["after"] for point in found["retained_accuracy"]] == [1, 3]
    first, last = (wanted["retained_accuracy"][index] for index in (0, 2))
    assert found["retained_accuracy"] == [first, last]
    assert found["retained_accuracy_auc"] == pytest.approx((first["mean"] + last["mean"]) / 2)
    assert found["retained_accuracy_auc_low"] <= found["retained_accuracy_auc"] <= found["retained_accuracy_auc_high"]


@pytest.mark.parametrize("rows", ["some", "0", "-1", "1.5", "[1]", ""])
def test_rows_that_make_no_sense_are_refused(rows: str, run: Callable[..., Path]) -> None:
    with pytest.raises(HimalayaError, match=r"evaluation\.rows"):
        run("LORA", f"evaluation.rows={rows}")


def test_rivals_share_the_row_before_training_and_what_evaluation_costs_is_counted(
    run: Callable[..., Path], evaluated: list[str]
) -> None:
    first = run("HIMALAYA_STRICT")
    assert len(evaluated) == 3 + 6 + 3 + 3, "before, the triangle, without labels, the release file"
    evaluated.clear()
    second = run("LORA")
    assert evaluated == [TASKS[0], *TASKS[:2], *TASKS]
    matrices = [read_json(folder / "matrix.json") for folder in (first, second)]
    assert matrices[0]["before"] == matrices[1]["before"]
    cost = read_json(second / "metrics.json")["evaluation_cost"]
    before = sum(cell["seconds"] for cell in matrices[0]["before"])
    assert (cost["evaluations"], cost["reused"]) == (9, 3)
    assert cost["reused_seconds"] == pytest.approx(before)
    found = read_json(first / "metrics.json")
    cost = found["evaluation_cost"]
    assert cost["evaluations"] == 3 + 6 + 3 + 3
    assert cost["seconds"] == found["eval_seconds"]
    assert cost["seconds_per_task"] == pytest.approx(cost["seconds"] / 15)
    assert cost["share_of_run"] == pytest.approx(cost["seconds"] / (cost["seconds"] + found["train_seconds"]))
    # Each task: before, its column of the matrix, without labels, the release file.
    assert sum(task["eval_seconds"] * count for task, count in zip(found["tasks"], (6, 5, 4), strict=True)) == (
        pytest.approx(cost["seconds"])
    )
    assert (cost["reused"], cost["reused_seconds"]) == (0, 0)


def test_a_task_whose_answers_have_not_changed_is_not_scored_again(
    run: Callable[..., Path], evaluated: list[str]
) -> None:
    folder = run("HIMALAYA", ROOM)
    assert evaluated == [*TASKS, *TASKS, *TASKS], "before, each task when it is learnt, without labels"
    matrix, found = read_json(folder / "matrix.json"), read_json(folder / "metrics.json")
    assert all(row[task] == matrix["rows"][task][task] for row in matrix["rows"] for task in range(len(row)))
    assert [task["released"] for task in found["tasks"]] == [task["final"] for task in found["tasks"]]
    cost = found["evaluation_cost"]
    assert (cost["evaluations"], cost["reused"]) == (3 + 6 + 3 + 3, 3 + 3), "the triangle's others, the release file"
    again = [row[task]["seconds"] for row in matrix["rows"] for task in range(len(row) - 1)]
    again += [task["released"]["seconds"] for task in found["tasks"]]
    assert cost["reused_seconds"] == pytest.approx(sum(again))


def test_started_anew_a_run_repeats_the_same_scores_without_scoring(
    run: Callable[..., Path], evaluated: list[str]
) -> None:
    wanted = results(run("HIMALAYA"))
    evaluated.clear()
    folder = run("HIMALAYA", overwrite=True)
    assert evaluated == list(TASKS), "what is answered without labels is not shared"
    assert results(folder) == wanted


def test_a_damaged_entry_is_computed_again(run: Callable[..., Path], evaluated: list[str]) -> None:
    folder = run("LORA")
    wanted = results(folder)
    evaluated.clear()
    for path in (folder.parent / ".scores").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert results(run("LORA", overwrite=True)) == wanted
    assert len(evaluated) == 9


def test_other_settings_share_nothing(run: Callable[..., Path], evaluated: list[str]) -> None:
    run("LORA")
    evaluated.clear()
    run("LORA", "run_id=other", "evaluation.eval_batch_size=4")
    assert len(evaluated) == 9
    evaluated.clear()
    # The first of the scheduler's steps has rate 0, so all rows have the fresh adapter, and one score each is enough.
    run("LORA", "run_id=still", "training.max_updates_per_task=1")
    assert evaluated == list(TASKS)


def test_a_score_whose_adapter_is_gone_is_not_made_up(run: Callable[..., Path]) -> None:
    folder = run("LORA")
    (folder / "metrics.json").unlink()
    (folder / "evaluations" / "after_0_task_0.json").unlink()
    with pytest.raises(HimalayaError, match="after task 1 is missing, and the adapter of that time is no longer kept"):
        run("LORA")


def test_a_run_may_be_scored_on_its_validation_items(run: Callable[..., Path], evaluated: list[str]) -> None:
    tested = run("HIMALAYA", ROOM)
    evaluated.clear()
    folder = run("HIMALAYA", ROOM, "run_id=validated", "evaluation.split=validation")
    assert evaluated == [*TASKS, *TASKS, *TASKS], "no score of the test items is taken for one"
    found = [read_json(one / "metrics.json") for one in (tested, folder)]
    assert [metrics["split"] for metrics in found] == ["test", "validation"]
    assert [[task["n"] for task in metrics["tasks"]] for metrics in found] == [[8, 8, 8], [2, 2, 2]]
    assert [task["unlabelled"]["n"] for task in found[1]["tasks"]] == [2, 2, 2]
    assert [task["released"]["n"] for task in found[1]["tasks"]] == [2, 2, 2]
    assert "<dt>Validation items</dt><dd>n = 6</dd>" in write_run_report(folder).read_text(encoding="utf-8")
    with pytest.raises(
        HimalayaError, match=r"evaluation\.split 'test' against 'validation'; give runs that were measured"
    ):
        write_comparison(folder.parent, ["himalaya", "validated"], folder.parent / "comparison")
    one = run("LORA", "evaluation.split=validation", "dataset.max_test_samples_per_task=1")
    assert [task["n"] for task in read_json(one / "metrics.json")["tasks"]] == [1, 1, 1]


def test_after_each_task_the_rows_so_far_are_told(tmp_path: Path, run: Callable[..., Path]) -> None:
    folder = run("LORA", "evaluation.rows=last")
    matrix = read_json(folder / "matrix.json")
    (folder / "metrics.json").unlink()
    told: list[list[list[float | None]]] = []
    config = compose_run([f"run={tmp_path / 'lora.yaml'}", "evaluation.rows=last"]).run
    run_stream(config, folder.parent, after_task=told.append)
    wanted = [[cell["score"] if cell else None for cell in row] for row in matrix["rows"]]
    assert told == [wanted[:1], wanted[:2], wanted]
