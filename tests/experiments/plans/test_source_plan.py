"""The source's plan gives the source's two run configs, key by key."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from himalaya_adapter.cli import main
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.keys import flattened, searched_key
from himalaya_adapter.experiments.plans import read_plan
from himalaya_adapter.experiments.validation import check_run

SUFFIX = "iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"
RUNS = (f"proposed-{SUFFIX}", f"comparative-1-{SUFFIX}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "configs"
    assert main(["configs", "generate", "himalaya", "--strict", "--output", str(folder)]) == 0
    return folder


def meaning(path: Path) -> dict[str, Any]:
    """All keys of a composed run with their values; names of the search space as the keys that they stand for."""
    content = asdict(compose_run([f"run={path}"]).run)
    keys = flattened(content)
    space = content["optuna"]["search_space"]
    content["optuna"]["search_space"] = {searched_key(name, keys): entry for name, entry in space.items()}
    return flattened(content)


@pytest.mark.parametrize("name", RUNS)
def test_a_config_means_what_the_sources_means(name: str, folder: Path) -> None:
    ours, theirs = meaning(folder / f"{name}.yaml"), meaning(CONF / "run" / f"{name}.yaml")
    assert ours == theirs


@pytest.mark.parametrize("name", RUNS)
def test_a_config_writes_the_sources_keys(name: str, folder: Path) -> None:
    """And nothing that the source leaves to defaults."""
    ours, theirs = (
        yaml.safe_load((place / f"{name}.yaml").read_text(encoding="utf-8")) for place in (folder, CONF / "run")
    )
    spaces = [config["optuna"].pop("search_space") for config in (ours, theirs)]
    assert flattened(ours).keys() == flattened(theirs).keys()
    assert len(spaces[0]) == len(spaces[1])


@pytest.mark.parametrize("name", RUNS)
def test_numbers_are_numbers_to_every_reader(name: str, folder: Path) -> None:
    """PyYAML reads YAML 1.1, to which 2e-4 is text."""
    values = flattened(yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")))
    assert isinstance(values["training.learning_rate"], float)
    assert values["optuna.search_space.learning_rate.low"] == 1e-5


def test_the_document_holds_the_files(folder: Path) -> None:
    document = json.loads((folder / "run_configs.json").read_text(encoding="utf-8"))
    assert list(document) == ["run_configs"]
    assert [entry["run_id"] for entry in document["run_configs"]] == list(RUNS)
    for entry in document["run_configs"]:
        assert list(entry) == ["run_id", "run_config_yaml"]
        assert (folder / f"{entry['run_id']}.yaml").read_text(encoding="utf-8") == entry["run_config_yaml"]
    assert len(list(folder.iterdir())) == 3


def test_generated_files_are_valid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(folder.iterdir())
    assert main(["configs", "validate", *map(str, paths)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{path}: ok" for path in paths]
    for path in paths:
        if path.suffix == ".yaml":
            check_run(compose_run([f"run={path}"]).run)


@pytest.mark.slow  # a process of its own imports all that checks a config
def test_another_process_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "himalaya_adapter.cli", "configs", "generate", "himalaya", "--output"]
    subprocess.run([*command, str(tmp_path)], check=True, capture_output=True, env={"PYTHONHASHSEED": "7"} | _paths())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert main(["configs", "generate", "himalaya", "--output", str(folder)]) == 0


def _paths() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}


def test_the_plan_is_the_sources() -> None:
    plan = read_plan("himalaya")[1].experimental_design
    assert plan.models_to_use == ["Llama-2-7B-HF (4-bit QLoRA, 7 B parameters)"]
    assert plan.comparative_methods == ["LILAC (Layer-Integrated Low-rank Adapter for Continual learning)"]
    sources = {
        "learning_rate": "1e-5-3e-4",
        "tau_similarity_threshold": "0.75-0.9",
        "kd_tree_fanout": "4,8,16",
        "router_temperature_init": "0.5-2.0",
        "adamw_weight_decay": "0-0.01",
    }
    # What the source's config of LILAC searches, its plan does not say.
    assert plan.hyperparameters_to_search == sources | {"lora_rank": "4,8", "ewc_lambda": "1e-2-1.0"}
