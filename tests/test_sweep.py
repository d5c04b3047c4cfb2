"""Many runs from one line, through Hydra's own launcher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import write_backbone, write_run, write_stream

from himalaya_adapter.cli import main
from himalaya_adapter.commands import runs
from himalaya_adapter.commands.runs import run_id
from himalaya_adapter.errors import told


@pytest.fixture
def words(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> list[str]:
    backbone = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer)
    run = write_run(tmp_path, backbone, write_stream(tmp_path), "LORA", max_updates_per_task=1)
    return ["sweep", f"run={run}", f"results_dir={tmp_path / 'out'}"]


def test_every_combination_is_a_run_of_its_own(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "training.seed=0,1", "model.adapter.options.r=2"]) == 0
    folders = sorted(path.parent for path in (tmp_path / "out").glob("*/metrics.json"))
    assert [folder.name for folder in folders] == ["lora_seed=0", "lora_seed=1"]
    configs = [yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) for folder in folders]
    assert [config["training"]["seed"] for config in configs] == [0, 1]
    assert all(config["model"]["adapter"]["options"]["r"] == 2 for config in configs)
    assert all((folder / "report.html").is_file() for folder in folders)


@pytest.mark.parametrize(
    ("swept", "names"),
    [
        (["training.learning_rate=0.5,1.5"], ["lora_learning_rate=0.5", "lora_learning_rate=1.5"]),
        (["dataset.name=/d/a.yaml,/e/a.yaml"], ["lora_name=-d-a.yaml", "lora_name=-e-a.yaml"]),
        (["backbone=/m/x,y"], ["lora_backbone=-m-x", "lora_backbone=y"]),
    ],
)
def test_no_two_runs_of_a_line_share_a_folder(words: list[str], swept: list[str], names: list[str]) -> None:
    lines = [swept[0].partition("=")[0] + "=" + value for value in swept[0].partition("=")[2].split(",")]
    found = [run_id([*words[1:], *swept], [*words[1:], line]) for line in lines]
    assert found == [[f"run_id={name}"] for name in names]


@pytest.mark.parametrize(
    "more", [["training.seed=0,1", "run_id=one"], ["dataset.name=a/b.yaml,a-b.yaml"], ["mode=full,trial"]]
)
def test_a_sweep_whose_runs_would_replace_each_other_is_refused(
    more: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "overwrite=true", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"himalaya: several runs of a sweep have the folder {tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_what_hydra_writes_lies_in_the_results_dir(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*words, "results_dir=~/it's,~/b", "training.seed=x"]) == 2
    assert (tmp_path / "it's" / ".sweep").is_dir()
    assert 'found "x", expected a whole number' in capsys.readouterr().err


@pytest.mark.parametrize("word", ["hydra/launcher=nope", "hydra.launcher=x"])
def test_a_wrong_word_of_hydra_is_one_line(word: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, word]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("himalaya: ")]
    assert line.startswith("himalaya: Hydra: ")


def test_a_mistake_in_one_run_does_not_stop_the_others(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "run_id=b,../a", "training.learning_rate=0.01"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("himalaya: ")]
    assert len(lines) == 1
    assert "run_id=../a training.learning_rate=0.01: run_id '../a' is not the name" in lines[0]
    assert [path.parent.name for path in (tmp_path / "out").glob("*/metrics.json")] == ["b"]


@pytest.mark.parametrize(
    "error", [MemoryError(), ImportError("no onnxruntime", name="onnxruntime"), OSError(28, "full")]
)
def test_what_ends_one_run_does_not_stop_the_others(
    words: list[str], error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []

    def command(line: list[str]) -> None:
        begun.append(line)
        if len(begun) == 1:
            raise error

    monkeypatch.setattr(runs, "run", command)
    assert main([*words, "training.seed=0,1"]) == 2
    assert len(begun) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("himalaya: ")]
    assert line.endswith(f"training.seed=0: {told(error)}")
