"""The measurement: what is timed, in which order, and what is written about it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learnt import write_learnt
from tiny_runs import run_words, write_run
from transformers import GPTNeoXConfig

from himalaya_adapter.cli import main
from himalaya_adapter.deploy import run_latency
from himalaya_adapter.deploy.bundle.runner import latency
from himalaya_adapter.deploy.bundle.runner.latency import CONTROL
from himalaya_adapter.deploy.onnx.decoder_graph import decoder_graph
from himalaya_adapter.deploy.onnx.layer import TASK, one_layer
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.training.environment import processor_name

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process")


def test_runs_are_timed_there_and_back() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ABC"}
    times = latency.interleaved(runs, seconds=0)
    assert {seconds.shape for seconds in times.values()} == {(latency.FEWEST_ROUNDS,)}
    timed = "".join(order[latency.WARM_UP * 3 :])
    assert timed == "ABCCBA" * latency.FEWEST_ROUNDS


def test_a_drift_of_the_machine_leaves_the_ratio() -> None:
    base = 1.0 + 0.5 * np.arange(40)
    found = latency.compare([{"base": base, "adapted": 1.02 * base}] * 2, "base")
    assert found["adapted"]["ratio"] == pytest.approx(1.02)
    assert found["adapted"]["interval"] == pytest.approx([1.02, 1.02])
    assert found["base"] == {"milliseconds": pytest.approx(10750.0)}


def test_the_interval_covers_the_true_ratio() -> None:
    generator, covered = np.random.default_rng(1), 0
    for _ in range(20):
        openings = [
            {"base": 1 + 0.1 * generator.random(10), "adapted": 1.05 * (1 + 0.1 * generator.random(10))}
            for _ in range(4)
        ]
        low, high = latency.compare(openings, "base")["adapted"]["interval"]
        covered += low <= 1.05 <= high
    assert covered >= 16  # of 20, at 95 %


def test_an_opening_that_is_slow_as_a_whole_widens_the_interval() -> None:
    generator = np.random.default_rng(2)
    openings = [
        {"base": 1 + 0.01 * generator.random(50), "adapted": slower + 0.01 * generator.random(50)}
        for slower in (1.0, 1.0, 1.0, 1.2)
    ]
    low, high = latency.compare(openings, "base")["adapted"]["interval"]
    assert high > 1.05, "rounds of one opening are no independent evidence"
    assert low > 0.95


@needs_affinity
def test_pinning_ends_with_the_measurement() -> None:
    before = os.sched_getaffinity(0)
    with latency.pinned(1) as cpus:
        assert os.sched_getaffinity(0) == set(cpus or ())
        assert len(cpus or ()) == 1
    assert os.sched_getaffinity(0) == before


def test_only_a_pi_is_called_a_pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "DEVICE_TREE", tmp_path / "model")
    assert "Raspberry" not in str(latency.device())
    (tmp_path / "model").write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    assert latency.device()["machine"] == "Raspberry Pi 4 Model B Rev 1.4"


@pytest.fixture(scope="module", autouse=True)
def few_openings() -> Iterator[None]:
    """Intervals are not looked at here: open the graphs twice only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "OPENINGS", 2)
        yield


@pytest.fixture(scope="module")
def measured(place: Path) -> dict[str, Any]:
    """What `himalaya latency` writes about a tiny adapter."""
    folder = write_learnt(place / "learnt", place / "backbone")
    words = ["latency", str(folder), "--precision", "fp32,int8,int4", "--threads", "1"]
    assert main([*words, "--seconds", "0.05", "--output", str(place / "latency.json")]) == 0
    return read_json(place / "latency.json")


@pytest.mark.slow
def test_what_is_written_about_a_run(measured: dict[str, Any]) -> None:
    asked = [(precision, phase) for precision in ("fp32", "int8", "int4") for phase in ("prefill", "decode")]
    assert [(entry["precision"], entry["phase"]) for entry in measured["measurements"]] == asked
    assert {"machine", "cpu", "cores", "system", "onnxruntime", "date"} <= set(measured["device"])
    for entry in measured["measurements"]:
        for name in ("adapted", CONTROL):
            graph = entry["graphs"][name]
            assert graph["interval"][0] <= graph["ratio"] <= graph["interval"][1]
        assert entry["graphs"]["base"]["milliseconds"] > 0
        assert entry["threads"] == 1
        assert all(rounds >= latency.FEWEST_ROUNDS for rounds in entry["rounds"])
        assert len(entry["rounds"]) == 2


@pytest.mark.slow
def test_every_graph_is_told(measured: dict[str, Any]) -> None:
    first, *lines = latency.told(measured["device"], measured["measurements"])
    assert measured["device"]["cpu"] in first
    assert len(lines) == 6 * 3


@pytest.mark.slow  # as the two above: tests/deploy/test_bundle.py measures with the same lines in a bundle
def test_one_layer_of_any_shape(place: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    words = ["latency", "--shape", str(place / "backbone"), "--threads", "1"]
    assert main([*words, "--seconds", "0.05", "--output", str(tmp_path / "latency.json")]) == 0
    written = read_json(tmp_path / "latency.json")
    assert [set(entry["graphs"]) for entry in written["measurements"]] == [{"base", "adapted", CONTROL}] * 2


SECONDARY = ["evaluation.secondary_metric=cpu_latency_overhead", "evaluation.cpu_latency_device=raspberry-pi-4"]


@pytest.mark.parametrize(
    "largest",
    [
        pytest.param(run_latency.LARGEST, id="the whole backbone", marks=pytest.mark.slow),
        pytest.param(1, id="one layer"),
    ],
)
def test_a_run_measures_its_secondary_metric_on_its_own_cpu(
    largest: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_latency, "SECONDS", 0.05)
    monkeypatch.setattr(run_latency, "LARGEST", largest)  # as if the tiny backbone were too large to be measured whole
    words = [*run_words(place, "HIMALAYA", max_updates_per_task=1), f"results_dir={tmp_path}", *SECONDARY]
    assert main(words) == 0
    here = f"cpu_latency_overhead is that of this machine ({processor_name()}), not of raspberry-pi-4"
    assert here in caplog.text
    metrics = read_json(tmp_path / "himalaya" / "metrics.json")
    (decode,) = (entry for entry in metrics["cpu_latency"]["measurements"] if entry["phase"] == "decode")
    assert metrics["cpu_latency_overhead"] == decode["graphs"]["adapted"]["ratio"] - 1
    assert metrics["cpu_latency_overhead_low"] <= metrics["cpu_latency_overhead"]
    assert metrics["cpu_latency_overhead"] <= metrics["cpu_latency_overhead_high"]
    assert metrics["cpu_latency"]["device"]["cpu"] == latency.device()["cpu"]
    assert ("one decoder layer" in metrics["cpu_latency"]["subject"]) == (largest == 1)
    told = [(tmp_path / "himalaya" / name).read_text(encoding="utf-8") for name in ("metrics.json", "report.html")]
    assert all(latency.device()["cpu"] in text and "raspberry" not in text.split("config.yaml")[0] for text in told)
    assert "CPU latency overhead" in told[1]
    assert main(words) == 0
    assert read_json(tmp_path / "himalaya" / "metrics.json") == metrics, "it is measured once"


@pytest.mark.slow
def test_a_finished_run_that_names_it_later_is_measured(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_latency, "SECONDS", 0.05)
    words = [*run_words(place, "HIMALAYA", max_updates_per_task=1), f"results_dir={tmp_path}", *SECONDARY]
    with monkeypatch.context() as patch:
        patch.setattr(run_latency, "measure_secondary_metric", lambda run, folder: False)  # as if killed before it
        assert main(words) == 0
    assert "cpu_latency" not in read_json(tmp_path / "himalaya" / "metrics.json")
    assert "CPU latency" not in (tmp_path / "himalaya" / "report.html").read_text(encoding="utf-8")
    assert main(words) == 0
    assert "cpu_latency_overhead" in read_json(tmp_path / "himalaya" / "metrics.json")
    assert "CPU latency" in (tmp_path / "himalaya" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "more", "reason"),
    [
        ("LORA", [], "an adapter of LORA has no ONNX graph"),
        ("HIMALAYA", ["model.adapter.options={placement: weights}"], "placement='weights' has no ONNX graph"),
        ("HIMALAYA", ["training.protocol=frozen"], "a frozen model has no adapter"),
    ],
)
def test_what_has_no_graph_says_so_and_has_no_overhead(
    method: str, more: list[str], reason: str, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*run_words(place, method, max_updates_per_task=1), f"results_dir={tmp_path}", *SECONDARY, *more]
    assert main(words) == 0
    assert f"cpu_latency_overhead is not measured: {reason}" in caplog.text
    assert "cpu_latency_overhead" not in read_json(tmp_path / method.lower() / "metrics.json")


def test_a_run_on_a_backbone_that_cannot_be_exported_ends_with_its_report(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = shutil.copytree(place / "backbone", tmp_path / "backbone")
    windows = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}
    write_json(backbone / "config.json", read_json(backbone / "config.json") | windows)
    run = write_run(tmp_path, backbone, place / "stream.yaml", "HIMALAYA", max_updates_per_task=1)
    assert main(["run", f"run={run}", f"results_dir={tmp_path}", *SECONDARY]) == 0
    assert "cpu_latency_overhead is not measured: a mistral with attention windows cannot be exported" in caplog.text
    assert (tmp_path / "himalaya" / "report.html").is_file()


def test_a_layer_that_cannot_be_exported_is_refused() -> None:
    with pytest.raises(HimalayaError, match="a gpt_neox cannot be exported"):
        decoder_graph(one_layer(GPTNeoXConfig(hidden_size=64, num_attention_heads=4)), [TASK], {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "llama-2-7"], "unknown backbone 'llama-2-7'"),
        (["--precision", "int3"], "unknown precision 'int3'; did you mean 'int"),
        (["nowhere", "--shape", "llama-2-7b"], "give either"),
        (["nowhere"], "nowhere is not a finished run"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("threads", ["0", "1000000000"])
def test_threads_have_a_range(threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", "--threads", threads]) == 2
    assert "Invalid value for '--threads'" in capsys.readouterr().err
