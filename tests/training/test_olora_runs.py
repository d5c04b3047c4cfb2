"""O-LoRA through the runner: it grows by a task's matrices per task, and a killed run ends as one that never was."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import in_own_process, results, run_words

from himalaya_adapter.experiments import compose_run
from himalaya_adapter.methods.construction import run_method
from himalaya_adapter.storage import read_json
from himalaya_adapter.training.stream_runner import run_stream

KILLED = -9


@pytest.fixture(scope="module")
def words(place: Path) -> list[str]:
    return run_words(place, "O_LORA", save_steps=2)


@pytest.fixture(scope="module")
def uninterrupted(place: Path, words: list[str]) -> Path:
    return run_stream(compose_run(words[1:]).run, place / "uninterrupted")


@pytest.mark.slow  # the suite kills runs of other methods: test_resume.py, test_rival_runs.py
def test_killed_in_and_between_tasks(uninterrupted: Path, words: list[str], tmp_path: Path) -> None:
    words = [*words, f"results_dir={tmp_path}"]
    for write in ("after_1_task_0", "task_2/checkpoint-4"):
        assert in_own_process(words, write=write) == KILLED
    assert in_own_process(words) == 0
    record = read_json(tmp_path / "o_lora" / "checkpoints" / "record_2.json")
    assert record["resumed"]
    assert results(tmp_path / "o_lora") == results(uninterrupted)


def test_the_stored_bytes_grow_by_a_task_each(uninterrupted: Path) -> None:
    records = [read_json(uninterrupted / "checkpoints" / f"record_{index}.json") for index in range(3)]
    parts = [record["stored_bytes_by_part"] for record in records]
    per_task = parts[0]["A"] + parts[0]["B"]
    assert [sum(one.values()) for one in parts] == [per_task, 2 * per_task, 3 * per_task]
    assert records[0]["stored_bytes"] < records[1]["stored_bytes"] < records[2]["stored_bytes"]
    tensors = load_file(uninterrupted / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == 3 * per_task


def test_the_penalty_reaches_the_loss_once_for_a_step(words: list[str], tmp_path: Path) -> None:
    """With a huge weight the loss of a task's first step is the penalty at its start, however the step is batched."""
    losses = []
    for name, batching in {"whole": ["batch_size=4"], "parts": ["batch_size=2", "grad_accum_steps=2"]}.items():
        training = [*batching, "learning_rate=1e-6", "warmup_steps=0", "max_updates_per_task=1"]
        settings = ["model.adapter.options.lambda_1=1e6", *(f"training.{one}" for one in training)]
        folder = run_stream(compose_run([words[1], *settings]).run, tmp_path / name)
        losses.append(read_json(folder / "checkpoints" / "record_1.json")["loss_first"])
    assert losses[0] > 1e4
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_seed_of_a_run_is_that_of_its_later_tasks(words: list[str]) -> None:
    assert run_method(compose_run([words[1], "training.seed=7"]).run).seed == 7
    assert run_method(compose_run([words[1], "training.seed=7", "model.adapter.options.seed=3"]).run).seed == 3
