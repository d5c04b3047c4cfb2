"""Two processes learn as one with twice the batch does, and hold the same adapter to the bit."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from observed_process import observe
from safetensors.torch import load_file
from tiny_runs import TIMEOUT, in_own_process, in_two_processes, write_backbone, write_run, write_stream

from himalaya_adapter.storage import read_json

WORKER = Path(__file__).with_name("observed_process.py")
TRAINING = {"task_epochs": 2, "learning_rate": 0.003}


@pytest.fixture
def words(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., list[str]]:
    """The words of a run: ``words(batch_size, results_dir, method="HIMALAYA")``."""
    backbone, stream = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer), write_stream(tmp_path)

    def words(batch_size: int, results_dir: Path, method: str = "HIMALAYA") -> list[str]:
        run = write_run(tmp_path, backbone, stream, method, **TRAINING)
        return ["run", f"run={run}", f"training.batch_size={batch_size}", f"results_dir={results_dir}"]

    return words


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_two_processes_are_one_with_twice_the_batch(words: Callable[..., list[str]], tmp_path: Path) -> None:
    statuses = in_two_processes(tmp_path, observe, tmp_path, words(4, tmp_path / "two"))
    said, errors = ("".join((tmp_path / f"{rank}.{end}").read_text() for rank in range(2)) for end in ("out", "err"))
    assert statuses == [0, 0], errors
    two = tmp_path / "two" / "himalaya"
    assert said.strip() == str(two / "report.html"), "one process reports"
    assert errors.count("parity: learning") == 1
    assert read_json(two / "environment.json")["processes"] == 2

    ranks = [load_file(tmp_path / f"rank_{rank}.safetensors") for rank in range(2)]
    saved = load_file(two / "adapter" / "adapter_model.safetensors")
    assert ranks[0].keys() == ranks[1].keys() == saved.keys()
    for name, tensor in ranks[0].items():
        assert torch.equal(tensor, ranks[1][name]), f"{name} is the same on both processes"
    assert read_json(tmp_path / "written_1.json") == [], "the first process alone writes"
    assert read_json(tmp_path / "written_0.json")

    kinds = [event["event"] for event in events(two)]
    assert kinds.count("task_end") == 3
    assert kinds.count("eviction") >= 1

    assert in_own_process(words(8, tmp_path / "one")) == 0
    one = tmp_path / "one" / "himalaya"
    assert [e["event"] for e in events(one)] == kinds
    for mine, other in zip(events(two), events(one), strict=True):
        assert mine.get("slot") == other.get("slot")
        if mine["event"] == "task_end":
            assert mine["loss_first"] == pytest.approx(other["loss_first"], rel=1e-4)
            assert mine["loss_last"] == pytest.approx(other["loss_last"], rel=1e-2)
            assert mine["free_atoms"] == other["free_atoms"]
    rows = [read_json(folder / "matrix.json")["rows"] for folder in (two, one)]
    for mine, other in zip(*([cell for row in matrix for cell in row] for matrix in rows), strict=True):
        assert mine["n"] == other["n"]
        assert mine["score"] == pytest.approx(other["score"], abs=1e-6)
    alone = load_file(one / "adapter" / "adapter_model.safetensors")
    for name, tensor in saved.items():
        if tensor.numel():
            largest = alone[name].float().abs().max().item()
            assert (tensor.float() - alone[name].float()).abs().max() <= 0.02 * largest, name


@pytest.mark.slow
def test_the_penalty_of_two_processes_counts_once(words: Callable[..., list[str]], tmp_path: Path) -> None:
    """Under torchrun itself, with online EWC: a doubled or halved penalty would change the adapter by an eighth."""
    more = ["model.adapter.ewc_lambda=1", "training.task_epochs=1", "dataset.max_test_samples_per_task=1"]
    process = torchrun(str(WORKER), str(tmp_path), *words(4, tmp_path / "two", "LORA_EWC"), *more)
    assert process.returncode == 0, process.stderr
    two, one = (tmp_path / name / "lora_ewc" / "adapter" for name in ("two", "one"))
    ranks = [load_file(tmp_path / f"rank_{rank}.safetensors") for rank in range(2)]
    saved = load_file(two / "adapter_model.safetensors")
    assert ranks[0].keys() == ranks[1].keys() == saved.keys()
    assert all(torch.equal(tensor, ranks[1][name]) for name, tensor in ranks[0].items())
    assert read_json(tmp_path / "written_1.json") == []

    assert in_own_process([*words(8, tmp_path / "one", "LORA_EWC"), *more]) == 0
    for file in ("adapter_model.safetensors", "ewc.safetensors"):
        alone = load_file(one / file)
        for name, tensor in load_file(two / file).items():
            largest = alone[name].float().abs().max().item()
            assert (tensor.float() - alone[name].float()).abs().max() <= 0.01 * largest, name
