"""The benchmarks that docs/results.md rests on, run on a tiny model."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_runs import run_words

from himalaya_adapter.cli import main

ROOT = Path(__file__).parents[1]


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("steps", [0, 2])
def test_many_tasks(steps: int) -> None:
    module = benchmark("many_tasks")
    found = module.measured(module.Setting(64, 2, 4, 128, atoms=3, steps=steps, most=6), (3, 6), rounds=1)["counts"]
    assert [row["tasks"] for row in found] == [3, 6]
    assert all(row["changed"] == row["adapter_changed"] == row["release_changed"] == 0 for row in found)
    assert all(row["recognised"] > 0.8 and row["mistaken"] == 0 for row in found)  # the others count as unknown
    assert found[0]["adapter_bytes"] == found[1]["adapter_bytes"] > found[1]["release_bytes"]
    assert found[0]["to_3_tasks"]["pass"] == [1, 1, 1]


def test_a_changed_task_is_seen() -> None:
    module = benchmark("many_tasks")
    model = module.adapted(module.Setting(64, 2, 4, 128, atoms=3, steps=1, most=2))
    first = module.Task(0)
    module.learn(model, first, 1)
    before = module.answers(model, first)
    assert module.answers(model, first) == before
    module.learn(model, first, 1)
    assert module.answers(model, first) != before


@pytest.mark.slow
def test_bits(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed benchmark goes on, and each number of bits is that of the same trained adapter."""
    module = benchmark("bits")
    keys = [f"backbone={place / 'backbone'}", f"dataset.name={place / 'stream.yaml'}", "training.learning_rate=0.02"]
    keys += ["training.max_updates_per_task=2"]
    output = tmp_path / "bits.jsonl"
    words = ["bits", "--output", str(output), "--work", str(tmp_path), "--set", *keys]
    monkeypatch.setattr(module, "BITS", (16, 3))  # two of them show it, and take half the time
    monkeypatch.setattr(sys, "argv", [*words, "--tasks", "1"])
    module.main()
    monkeypatch.setattr(sys, "argv", words)
    module.main()
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    asked = [(method, bits) for method in module.METHODS for bits in (16, 3)]
    assert [(line["method"], line["bits"]) for line in lines] == asked * 3
    assert all(0 <= line["score"] <= 1 and len(line["item_scores"]) == line["n"] == 8 for line in lines)
    assert all(line["steps"] == 2 for line in lines)
    assert lines[0]["bytes"] > lines[1]["bytes"] > 0
    content = output.read_text(encoding="utf-8")
    module.main()
    assert output.read_text(encoding="utf-8") == content, "what is there is not measured again"


def test_a_finished_run_is_scored_again(place: Path, tmp_path: Path) -> None:
    room = "model.adapter.options.elastic_atoms=9"
    assert main([*run_words(place, "HIMALAYA", max_updates_per_task=2), room, f"results_dir={tmp_path}"]) == 0
    module, run = benchmark("score_again"), tmp_path / "himalaya"
    found = module.scored_again(run)
    assert (found["run"], found["tasks"], found["changed"], found["largest_difference"]) == ("himalaya", 3, 0, 0)
    path = run / "item_scores.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["rows"][0][0][0] = 0.5
    path.write_text(json.dumps(told), encoding="utf-8")
    assert module.scored_again(run)["changed"] == 1
    assert found["items"] == sum(len(rows[index]) for index, rows in enumerate(told["rows"]))
