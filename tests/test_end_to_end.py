"""From two run configs to two reports and a comparison, on a tiny random Llama and a user's own stream."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_runs import TASKS, in_own_process, run_words, write_backbone, write_stream

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.evaluation import metrics as formulas
from himalaya_adapter.evaluation.item_scores import read_item_scores
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.storage import read_json
from himalaya_adapter.streams import load_stream
from himalaya_adapter.training.stream_runner import run_stream

METHODS = ("HIMALAYA", "LORA")
FRACTIONS = (
    *("average_accuracy", "learning_accuracy", "average_anytime_accuracy", "retained_accuracy_auc"),
    *("retained_accuracy_auc_low", "retained_accuracy_auc_high", "frozen_accuracy"),
)


@pytest.fixture(params=METHODS)
def run(request: pytest.FixtureRequest, place: Path) -> Path:
    """The folder of a finished run of each method, computed once."""
    folder = place / "out" / request.param.lower()
    if not (folder / "metrics.json").is_file():
        assert main([*run_words(place, request.param), f"results_dir={place / 'out'}"]) == 0
    return folder


def stored(run: Path, row: int | str, task: int) -> dict[str, Any]:
    return read_json(run / "evaluations" / f"after_{row}_task_{task}.json")


def event_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_matrix_is_the_stored_evaluations(run: Path) -> None:
    matrix = read_json(run / "matrix.json")
    assert matrix["tasks"] == list(TASKS)
    assert [len(row) for row in matrix["rows"]] == [1, 2, 3]
    cells = [(matrix["before"][task], stored(run, "before", task)) for task in range(3)]
    cells += [(matrix["rows"][row][task], stored(run, row, task)) for row in range(3) for task in range(row + 1)]
    for cell, evaluation in cells:
        scores = evaluation.pop("item_scores")
        evaluation.pop("reused", None)
        assert len(evaluation.pop("answers")) == 3
        assert len(evaluation.pop("sha256")) == 64
        assert cell == evaluation
        assert cell["low"] <= cell["score"] <= cell["high"]
        assert len(scores) == cell["n"] == 8
        if cell["metric"] in ("accuracy", "token_f1", "chrf"):
            assert cell["score"] == pytest.approx(sum(scores) / 8)


def test_the_item_scores_are_kept_in_one_file_of_numbers(run: Path) -> None:
    kept = read_item_scores(run, read_json(run / "matrix.json")["rows"])
    for row in range(3):
        for task in range(row + 1):
            assert kept[row][task] == pytest.approx(stored(run, row, task)["item_scores"], abs=5e-5)


def test_the_metrics_follow_from_the_matrix(run: Path) -> None:
    matrix, found = read_json(run / "matrix.json"), read_json(run / "metrics.json")
    scores = [[cell["score"] for cell in row] for row in matrix["rows"]]
    last = len(scores) - 1
    assert found["average_accuracy"] == pytest.approx(sum(scores[last]) / 3)
    assert found["learning_accuracy"] == pytest.approx(sum(row[-1] for row in scores) / 3)
    assert found["backward_transfer"] == pytest.approx(sum(scores[last][j] - scores[j][j] for j in range(2)) / 2)
    assert found["forgetting"] == pytest.approx(formulas.forgetting(scores))
    means = [sum(row) / len(row) for row in scores]
    assert found["average_anytime_accuracy"] == pytest.approx(sum(means) / 3)
    assert [entry["mean"] for entry in found["retained_accuracy"]] == pytest.approx(means)
    assert found["retained_accuracy_auc"] == pytest.approx(formulas.retained_accuracy_auc(scores))
    assert found["retention"] == pytest.approx(formulas.retention(scores))
    assert found["frozen_accuracy"] == pytest.approx(sum(cell["score"] for cell in matrix["before"]) / 3)
    assert all(0 <= found[name] <= 1 for name in FRACTIONS)
    assert found["retained_accuracy_auc_low"] <= found["retained_accuracy_auc"] <= found["retained_accuracy_auc_high"]
    cells = [*matrix["before"], *(cell for row in matrix["rows"] for cell in row)]
    cells += [task[how] for task in found["tasks"] for how in ("unlabelled", "released") if how in task]
    assert found["eval_seconds"] == pytest.approx(sum(cell["seconds"] for cell in cells))
    for index, task in enumerate(found["tasks"]):
        assert (task["name"], task["n"]) == (TASKS[index], 8)
        assert task["before"] == matrix["before"][index]
        assert task["after_learning"] == matrix["rows"][index][index]
        assert task["final"] == matrix["rows"][last][index]


def test_the_resources_are_those_of_the_adapter(run: Path) -> None:
    found = read_json(run / "metrics.json")
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert found["stored_bytes"] == (run / "adapter" / "adapter_model.safetensors").stat().st_size
    assert found["peak_memory_bytes"] > 50_000_000
    assert found["train_seconds"] > 0
    if found["method"] == "lora":
        assert found["trainable_parameters"] == sum(tensor.numel() for tensor in tensors.values())
        assert found["update_norm_max"] is None
        assert found["atom_norm_max"] is None
    else:
        assert 0 < found["trainable_parameters"] < sum(tensor.numel() for tensor in tensors.values())
        bound = read_json(run / "adapter" / "adapter_config.json")["norm_bound"]
        assert bound == 2
        assert 0 < found["update_norm_max"] <= bound * (1 + 1e-6)
        assert 0.9 < found["atom_norm_max"] <= 1.05


def task_ends(run: Path) -> list[dict[str, Any]]:
    return [event for event in event_lines(run) if event["event"] == "task_end"]


def test_the_events_and_the_environment_tell_what_happened(run: Path, place: Path) -> None:
    ends = task_ends(run)
    assert [(event["index"], event["task"]) for event in ends] == list(enumerate(TASKS))
    assert all(event["steps"] == 6 for event in ends)
    assert all(event["skipped_steps"] == 0 for event in ends)
    assert all(event["stored_bytes"] == ends[0]["stored_bytes"] for event in ends), "constant size"
    if run.name == "himalaya":
        assert all(event["active_atoms"] == 3 for event in ends)
        assert all(0 <= event["free_atoms"] < 8 for event in ends)
    else:
        assert event_lines(run) == ends
    environment = read_json(run / "environment.json")
    hashes = {task.name: dict(task.hashes) for task in load_stream(str(place / "stream.yaml")).tasks}
    assert environment["data_hashes"] == hashes
    assert environment["torch"] == torch.__version__
    assert environment["seed"] == 0


@pytest.mark.parametrize("run", ["HIMALAYA"], indirect=True)
def test_the_dictionary_grows_and_evicts(run: Path) -> None:
    """The events stand in the order in which they happened, each task's before its end."""
    lines = event_lines(run)
    order = [(event["index"], event.get("step", event.get("steps")), event["event"] == "task_end") for event in lines]
    assert order == sorted(order)
    assert all(event["task"] == TASKS[event["index"]] for event in lines)
    evictions = [event for event in lines if event["event"] == "eviction"]
    sharings = [event for event in lines if event["event"] == "sharing"]
    assert {event["event"] for event in lines} <= {"eviction", "sharing", "task_end"}
    assert {event["index"] for event in evictions} == {2}, "the first two tasks have left too few slots"
    assert all(event["step"] == 6 and 0 <= event["slot"] < 8 for event in [*evictions, *sharings])
    assert all(0 <= event["survives"] <= 1 and set(event["tasks"]) <= set(TASKS[:2]) for event in evictions)
    assert all(0.98 <= abs(event["similarity"]) <= 1 + 1e-6 for event in sharings)
    free = [event["free_atoms"] for event in task_ends(run)]
    shared = [sum(event["index"] <= index for event in sharings) for index in range(3)]
    assert free[:2] == [8 - 3 + shared[0], 8 - 6 + shared[1]]
    assert free[2] == 0
    assert len(evictions) == 3 * 3 - 8 - shared[2]
    assert "Events, task by task" in (run / "report.html").read_text(encoding="utf-8")


def test_training_changed_the_adapter_and_the_loss_fell(run: Path) -> None:
    first = task_ends(run)[0]
    assert first["loss_last"] < first["loss_first"]
    assert len(first["losses"]) == first["steps"]
    assert (first["losses"][0], first["losses"][-1]) == pytest.approx(
        (first["loss_first"], first["loss_last"]), abs=1e-4
    )


def test_sample_answers_are_kept_before_training_after_it_and_at_the_end(run: Path, place: Path) -> None:
    samples = read_json(run / "samples.json")["tasks"]
    assert [one["task"] for one in samples] == list(TASKS)
    for index, (task, found) in enumerate(zip(load_stream(str(place / "stream.yaml")).tasks, samples, strict=True)):
        assert [item["target"] for item in found["items"]] == [item.target for item in task.test[:3]]
        assert all(item.prompt.endswith(one["prompt"]) for item, one in zip(task.test, found["items"], strict=False))
        rows = ("before", index, 2)
        wanted = zip(*(stored(run, row, index)["answers"] for row in rows), strict=True)
        assert [tuple(item["answers"]) for item in found["items"]] == list(wanted)
        if task.spec.kind == "classification":
            assert {answer for item in found["items"] for answer in item["answers"]} <= set(task.spec.labels)


def test_the_saved_adapter_scores_as_the_last_row(run: Path, place: Path) -> None:
    stream = load_stream(str(place / "stream.yaml"))
    backbone = load_backbone(str(place / "backbone"), dtype="float32")
    model = PeftModel.from_pretrained(backbone.model, run / "adapter").eval()
    for index, task in enumerate(stream.tasks):
        continual(model).set_task(task.name)
        score = evaluate_task(model, backbone.tokenizer, task, batch_size=8, max_length=96)
        wanted = stored(run, 2, index)
        assert list(score.item_scores) == wanted["item_scores"]
        assert score.score == wanted["score"]


def test_the_page_stands_alone_and_the_runs_can_be_compared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in METHODS:
        assert main([*run_words(place, method), f"results_dir={place / 'out'}"]) == 0
        page = (place / "out" / method.lower() / "report.html").read_text(encoding="utf-8")
        assert all(task in page for task in TASKS)
        assert "http://" not in page.replace("http://www.w3.org", "")
    capsys.readouterr()
    assert main(["compare", str(place / "out"), "himalaya", "lora"]) == 0
    report = place / "out" / "comparison" / "report.html"
    assert capsys.readouterr().out.strip() == str(report)
    assert report.is_file()
    aggregated = (report.parent / "aggregated_metrics.json").read_text(encoding="utf-8")
    assert '"himalaya"' in aggregated
    assert '"lora"' in aggregated
    tests = read_json(report.parent / "aggregated_metrics.json")["paired_tests"]
    assert [entry["of"] for entry in tests["tasks"]] == list(TASKS)
    assert all(entry["seeds_in_pairs"] == [0] for entry in tests["measures"])


def test_generate_answers_as_a_task(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run), "Repeat 12:", "--task", "echo", "--max-new-tokens", "4"]) == 0
    answer = capsys.readouterr().out.strip()
    loaded = load_adapter(run / "adapter", task="echo")
    tokenizer, model = loaded.tokenizer, loaded.model
    inputs = tokenizer("Repeat 12:", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer == tokenizer.decode(output, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        (["training.grad_accum_steps=2"], 3),
        (["training.task_epochs=2", "training.max_updates_per_task=8", "training.gradient_checkpointing=true"], 8),
        (["training.mixed_precision=bf16", "training.lr_scheduler=cosine", "training.warmup_steps=2"], 6),
        (["mode=trial"], 4),  # 16 items in batches of 4
    ],
)
def test_every_way_of_training_runs_to_the_end(changes: list[str], steps: int, place: Path, tmp_path: Path) -> None:
    run_stream(compose_run([*run_words(place, "HIMALAYA")[1:], *changes]).run, tmp_path)
    assert [event["steps"] for event in task_ends(tmp_path / "himalaya")] == [steps] * 3


def test_the_tasks_can_be_learnt_in_the_reversed_order(place: Path, tmp_path: Path) -> None:
    run_stream(compose_run([*run_words(place, "LORA")[1:], "dataset.order=reversed", "mode=trial"]).run, tmp_path)
    assert [event["task"] for event in task_ends(tmp_path / "lora")] == [*TASKS[::-1]]


def test_accumulated_gradients_are_those_of_the_large_batch(place: Path, tmp_path: Path) -> None:
    tensors, losses = [], []
    for batch_size, steps in ((8, 1), (4, 2)):
        sizes = [f"training.batch_size={batch_size}", f"training.grad_accum_steps={steps}"]
        launch = compose_run([*run_words(place, "LORA")[1:], *sizes, f"results_dir={tmp_path / str(steps)}"])
        folder = run_stream(launch.run, launch.results_dir)
        tensors.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
        losses.append([event[key] for event in task_ends(folder) for key in ("loss_first", "loss_last")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name, tensor in tensors[0].items():
        # AdamW divides tiny gradients by their size, and rounding with them: hence the wide tolerance.
        torch.testing.assert_close(tensor, tensors[1][name], rtol=0, atol=5e-3)


def test_gradient_checkpointing_changes_no_score(place: Path, tmp_path: Path) -> None:
    plain = compose_run(run_words(place, "LORA")[1:]).run
    saving = dataclasses.replace(plain, training=dataclasses.replace(plain.training, gradient_checkpointing=True))
    folders = [run_stream(one, tmp_path / name) for one, name in ((plain, "plain"), (saving, "saving"))]
    one, other = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in folders)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name])


@pytest.mark.parametrize("method", METHODS)
def test_a_4_bit_backbone(method: str, place: Path, tmp_path: Path) -> None:
    words = [*run_words(place, method), f"results_dir={tmp_path}", "model.backbone.quantisation=4-bit QLoRA"]
    # bitsandbytes may abort a process on a processor that it does not know: not this one.
    assert in_own_process([*words, "training.max_updates_per_task=2"]) == 0
    assert read_json(tmp_path / method.lower() / "metrics.json")["stored_bytes"] > 0
    model = load_adapter(tmp_path / method.lower(), task="parity").model
    assert model.get_base_model().is_loaded_in_4bit


@pytest.mark.parametrize("name", ["proposed", pytest.param("comparative-1", marks=pytest.mark.slow)])
def test_the_runs_of_the_source_on_a_tiny_4_bit_model(
    name: str, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """As they are, but for the backbone and the stream: gradient checkpointing, bf16, warm-up, EWC, budgets."""
    backbone = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer, max_position_embeddings=1024)
    words = ["run", f"run={name}-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters", "mode=trial"]
    words += [f"backbone={backbone}", "model.backbone.quantisation=4-bit QLoRA"]
    words += [f"dataset.name={write_stream(tmp_path)}", "dataset.num_tasks=3", "dataset.languages=[en]"]
    assert in_own_process([*words, f"results_dir={tmp_path / 'out'}"]) == 0
    (folder,) = (path.parent for path in (tmp_path / "out").glob("*/metrics.json"))
    metrics = read_json(folder / "metrics.json")
    assert metrics["stored_bytes"] > metrics["released_bytes"] > 0
    assert [event["steps"] for event in task_ends(folder)] == [2, 2, 2]
    assert (folder / "adapter" / "ewc.safetensors").is_file() == (name == "comparative-1")


def test_adapter_options_from_the_command_line(place: Path, tmp_path: Path) -> None:
    options = ["model.adapter.options.r=2", "model.adapter.options.target_modules=[v_proj]", "mode=trial"]
    run_stream(compose_run([*run_words(place, "LORA")[1:], *options]).run, tmp_path)
    tensors = load_file(tmp_path / "lora" / "adapter" / "adapter_model.safetensors")
    assert all("v_proj" in name for name in tensors)
    assert {min(tensor.shape) for tensor in tensors.values()} == {2}
