"""Any PEFT method as a rival: one adapter for all tasks or one for each, scored as it is stored in few bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from tiny_runs import ADAPTERS, in_own_process, results, write_run

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.budget import count_budget
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.methods.construction import adapt, run_method
from himalaya_adapter.methods.packed_adapter import PACKED_FILE, pack, trainable_parameters, unpack
from himalaya_adapter.storage import read_json
from himalaya_adapter.training.stream_runner import run_stream

QUERIES = ["q_proj", "o_proj"]
RIVALS: dict[str, dict[str, Any]] = {
    "LORA": ADAPTERS["LORA"] | {"per_task": True, "bits": 3},
    "LOREFT": {"type": "LOREFT", "options": {"r": 2}, "per_task": True, "bits": 3},
    "UNILORA": {"type": "UNILORA", "options": {"target_modules": QUERIES, "theta_d_length": 64}, "bits": 8},
}
TENSORS = {"a": torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) / 1000, "b": torch.ones(7)}


def a_run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> RunConfig:
    monkeypatch.setitem(ADAPTERS, name, RIVALS[name])
    path = write_run(tmp_path, place / "backbone", place / "stream.yaml", name, max_updates_per_task=3)
    return compose_run([f"run={path}"]).run


@pytest.mark.parametrize("name", RIVALS)
def test_what_is_scored_is_what_is_stored(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(place, tmp_path, monkeypatch, name)
    folder = run_stream(run, tmp_path / "runs")
    backbone = load_backbone(run.model.backbone.name, dtype="float32").model
    model = adapt(backbone, run_method(run), run.training.seed)
    trained = {key: one.detach().clone() for key, one in trainable_parameters(model).items()}
    packed = load_file(folder / "adapter" / PACKED_FILE)
    change = unpack(packed, RIVALS[name]["bits"], trained)
    assert all(one.any() for one in change.values())
    set_peft_model_state_dict(model, load_file(folder / "adapter" / "adapter_model.safetensors"))
    for key, scored in trainable_parameters(model).items():
        assert torch.equal(scored, trained[key] + change[key])

    numbers, size = sum(one.numel() for one in trained.values()), (folder / "adapter" / PACKED_FILE).stat().st_size
    assert count_budget(run).stored == {"packed": size}
    groups = -(-numbers // 32)
    assert size - 500 < -(-numbers // 8) * RIVALS[name]["bits"] + 4 * groups + 4 * len(trained) < size
    stored = [read_json(folder / "checkpoints" / f"record_{index}.json")["stored_bytes"] for index in range(3)]
    if not RIVALS[name].get("per_task"):
        assert stored == [size] * 3
        return
    assert stored == [size, 2 * size, 3 * size]
    rows = read_json(folder / "matrix.json")["rows"]
    assert all(cell["score"] == rows[task][task]["score"] for row in rows for task, cell in enumerate(row))
    assert read_json(folder / "metrics.json")["protocol"] == "sequential", "a method, and no bound"


@pytest.mark.slow
def test_a_killed_run_stores_the_same(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(place, tmp_path, monkeypatch, "UNILORA")
    whole = results(run_stream(run, tmp_path / "whole"))
    words = ["run", f"run={tmp_path / 'unilora.yaml'}", f"results_dir={tmp_path / 'killed'}"]
    assert in_own_process(words, write="after_1_task_0") == -9
    assert in_own_process(words) == 0
    assert results(tmp_path / "killed" / "unilora") == whole


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_packed_numbers_come_back_to_half_a_step(bits: int) -> None:
    back = unpack(pack(TENSORS, bits), bits, TENSORS)
    step = 2 / (2**bits - 1) if bits < 16 else 2**-10  # of numbers between the largest magnitude and its opposite
    for name, tensor in TENSORS.items():
        assert (back[name] - tensor).abs().max() <= tensor.abs().max() * (step / 2 + 2**-10)
        assert back[name].shape == tensor.shape


def test_what_was_never_moved_is_stored_exactly() -> None:
    zeros = {"a": torch.zeros(40)}
    assert all(torch.equal(unpack(pack(zeros, bits), bits, zeros)["a"], zeros["a"]) for bits in (3, 16))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=demo-himalaya", "model.adapter.bits=3"], "model.adapter.bits=3 of run 'himalaya': expected null"),
        (["run=demo-lora", "model.adapter.bits=5"], "found 5, expected one of 3, 4, 8, 16, or null"),
        (["run=demo-lora", "model.adapter.per_task=true", "training.protocol=joint"], "model.adapter.per_task=True"),
        (["run=demo-lora-ewc", "model.adapter.per_task=true"], "model.adapter.ewc_lambda"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(HimalayaError, match=message):
        check_run(compose_run(words).run)
