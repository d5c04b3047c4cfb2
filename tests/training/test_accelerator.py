"""A run whose model lies on another device than the CPU, on a machine without one (`far_device`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from far_device import DEVICE, SHORT, FarDevice
from tiny_runs import results, run_words

from himalaya_adapter.experiments import compose_run
from himalaya_adapter.training.stream_runner import run_stream

TESTS = Path(__file__).parents[1]


def far_run(place: Path, method: str) -> Path:
    """The folder of a finished run, made in a process of its own: accelerate keeps one device for a whole process."""
    command = [sys.executable, str(TESTS / "far_device.py"), str(place), method]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return place / "far" / method.lower()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["HIMALAYA", "LORA_EWC"])
def test_a_run_on_an_accelerator_ends_as_on_the_cpu(method: str, place: Path) -> None:
    words = run_words(place, method, **SHORT)
    here = results(run_stream(compose_run(words[1:]).run, place / "near"))
    there = results(far_run(place, method))

    def losses(run: dict) -> list[float]:
        return [line[name] for line in run["events"] for name in ("loss_first", "loss_last") if name in line]

    assert losses(there) == pytest.approx(losses(here), rel=1e-3)
    assert there["metrics"]["stored_bytes"] == here["metrics"]["stored_bytes"]
    assert there["metrics"]["base_drift"] == pytest.approx(here["metrics"]["base_drift"], rel=1e-2, abs=1e-4)


def test_tensors_of_two_devices_do_not_meet() -> None:
    with FarDevice():
        far = torch.ones(3).to(DEVICE)
        assert (far + torch.tensor(1.0)).sum().item() == 6
        with pytest.raises(RuntimeError, match="both devices"):
            far + torch.ones(3)
        with pytest.raises(RuntimeError, match="both devices"):
            far.add_(torch.ones(3))
