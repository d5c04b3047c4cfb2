"""A rival is one module and one row: PEFT, run configs and the runner then know it."""

import json
from pathlib import Path

import pytest
from tiny_runs import ADAPTERS, write_run

from himalaya_adapter.experiments import compose_run
from himalaya_adapter.methods.construction import run_method
from himalaya_adapter.methods.registration import register
from himalaya_adapter.registry import METHODS, Method
from himalaya_adapter.storage import read_json
from himalaya_adapter.training.stream_runner import run_stream

RIVAL = {
    "__init__.py": """
from .config import RungConfig
from .model import RungModel
""",
    "config.py": """
from dataclasses import dataclass
from peft import PeftType
from himalaya_adapter.methods.targets import TargetsConfig

@dataclass
class RungConfig(TargetsConfig):
    rungs: int = 1

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.RUNG
""",
    "model.py": """
from dataclasses import dataclass
import torch
from torch import nn
from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.linear_delta import LinearDeltaLayer, LinearDeltaModel

@dataclass(frozen=True)
class Climb(Event):
    kind = "climb"
    task: str

class RungLayer(LinearDeltaLayer):
    adapter_layer_names = ("rung_A", "rung_B")

    def add_adapter(self, name, config):
        self.rung_A[name] = nn.Parameter(torch.randn(config.rungs, self.in_features) / self.in_features**0.5)
        self.rung_B[name] = nn.Parameter(torch.zeros(self.out_features, config.rungs))

    def factors(self, name):
        return [(self.rung_A[name], self.rung_B[name])]

class RungModel(LinearDeltaModel):
    prefix = "rung_"
    tuner_layer_cls = RungLayer

    def end_task(self):
        return [Climb("up")]
""",
}
KEYS = {"model.adapter.lora_rank": "rungs"}
ROW = Method("RUNG", module="rung_rival", config="RungConfig", tuner="RungModel", options=KEYS)


def test_a_rival_added_from_outside_runs_through_a_stream(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rung_rival").mkdir()
    for name, text in RIVAL.items():
        (tmp_path / "rung_rival" / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, ROW.type, ROW)
    register(ROW)
    monkeypatch.setitem(ADAPTERS, "RUNG", {"type": "rung", "lora_rank": 2})
    path = write_run(tmp_path, place / "backbone", place / "stream.yaml", "RUNG", max_updates_per_task=2)
    run = compose_run([f"run={path}"]).run
    assert run_method(run).rungs == 2
    folder = run_stream(run, tmp_path / "runs")
    assert read_json(folder / "metrics.json")["method"] == "rung"
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["climb", "task_end"] * 3
    assert lines[0] == {"index": 0, "task": "up", "event": "climb", "step": 2}
