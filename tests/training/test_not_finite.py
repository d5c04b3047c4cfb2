"""Losses and gradients that are not finite: the step is dropped and counted, and a run of them is one clear line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import run_words, write_backbone, write_run, write_stream

from himalaya_adapter.cli import main
from himalaya_adapter.streams import load_stream
from himalaya_adapter.streams.splits import split_of
from himalaya_adapter.training.task_callback import MOST_SKIPPED

both_methods = pytest.mark.parametrize("method", ["HIMALAYA", "LORA"])
POISON = "§"


def poisoned(place: Path, build: Callable[..., Any], tokenizer: Any, count: int | None) -> tuple[Path, Path]:
    """A backbone whose embedding of one token is infinite, and a stream with it in some items of its second task.

    Args:
        count: How many training items hold it, ``None`` for all; no others do.
    """
    stream = write_stream(place)
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [row for row in rows if split_of(row["id"]) == "train"]
    for row in training:
        row["sentence"] = f"{POISON} {row['sentence']}"
        if count is None and row is not training[-1]:
            continue
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        if sum(POISON in item.prompt for item in load_stream(str(stream)).tasks[1].train) == count:
            break
    backbone = write_backbone(place / "backbone", build, tokenizer)
    tensors = load_file(backbone / "model.safetensors")
    tensors["model.embed_tokens.weight"][tokenizer.encode(POISON)[0]] = torch.inf
    save_file(tensors, backbone / "model.safetensors", metadata={"format": "pt"})
    return backbone, stream


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_finite(file: Path) -> None:
    for name, tensor in load_file(file).items():
        assert tensor.float().isfinite().all(), name


@both_methods
def test_a_step_without_a_finite_gradient_is_dropped(
    method: str, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    place = poisoned(tmp_path, tiny_model, tiny_tokenizer, count=2)
    run = write_run(tmp_path, *place, method)
    assert main(["run", f"run={run}", f"results_dir={tmp_path / 'out'}"]) == 0
    folder = tmp_path / "out" / method.lower()
    ends = [event for event in events(folder) if event["event"] == "task_end"]
    skipped = [event for event in events(folder) if event["event"] == "skipped_step"]
    assert [end["skipped_steps"] for end in ends] == [0, len(skipped), 0]
    assert 1 <= len(skipped) <= 2
    assert all(event["task"] == "colour_word" and 1 <= event["step"] <= 6 for event in skipped)
    assert all(0 < end[key] < 100 for end in ends for key in ("loss_first", "loss_last"))
    assert_finite(folder / "adapter" / "adapter_model.safetensors")


def optimiser_steps(folder: Path) -> set[float]:
    state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return {float(entry["step"]) for entry in state.values()}


@both_methods
def test_many_such_steps_in_a_row_are_one_clear_line(
    method: str,
    tiny_model: Callable[..., Any],
    tiny_tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = poisoned(tmp_path, tiny_model, tiny_tokenizer, count=None)
    run = write_run(tmp_path, *place, method, task_epochs=2, save_steps=3)
    words = ["run", f"run={run}", f"results_dir={tmp_path}"]
    for _ in range(2):  # it goes on from its last checkpoint, and finds the same again
        assert main(words) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith(f"himalaya: task 'colour_word': {MOST_SKIPPED} steps in a row")
        assert f"up to step {MOST_SKIPPED}; try a lower training.learning_rate" in line
    checkpoint = tmp_path / method.lower() / "checkpoints" / "task_1" / "checkpoint-9"
    assert (checkpoint / "complete.json").is_file()
    assert_finite(checkpoint / "adapter_model.safetensors")
    before = load_file(tmp_path / method.lower() / "checkpoints" / "after_0" / "adapter_model.safetensors")
    after = load_file(checkpoint / "adapter_model.safetensors")
    if method == "LORA":
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()), "nothing was learnt"
    assert [event["event"] for event in events(tmp_path / method.lower())][-1] == "task_end", "of the first task"
    assert optimiser_steps(checkpoint) == set(), "no moment of the optimiser has moved"


@pytest.mark.parametrize("method", ["HIMALAYA", "HIMALAYA_STRICT"])
def test_a_learning_rate_beyond_all_measure_ends_in_one_line_or_in_scores(
    method: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a division by zero in the consolidation; whatever it does now, it is no traceback."""
    words = run_words(place, method, max_updates_per_task=2)
    status = main([*words, f"results_dir={tmp_path}", "training.learning_rate=1e30", "evaluation.rows=last"])
    assert status in (0, 2)
    assert (tmp_path / method.lower() / "metrics.json").is_file() == (status == 0)
    assert status == 0 or "himalaya: " in capsys.readouterr().err.splitlines()[-1]
