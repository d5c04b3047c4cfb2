"""A search small enough for tests: LoRA on a random Llama, a stream of two tasks, a handful of items."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import write_backbone, write_run, write_stream


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture
def words(place: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> list[str]:
    """The command line of a search for a learning rate, without its ``results_dir=``."""
    backbone, stream = place / "backbone", place / "stream.yaml"
    if not stream.is_file():
        write_backbone(backbone, tiny_model, tiny_tokenizer)
        content = yaml.safe_load(write_stream(place).read_text(encoding="utf-8"))
        stream.write_text(yaml.safe_dump(content | {"tasks": content["tasks"][:2]}), encoding="utf-8")
    run = write_run(place, backbone, stream, "LORA", save_steps=1)
    return [
        *("search", f"run={run}", f"optuna.stream={stream}", "optuna.n_trials=4"),
        *("optuna.search_space.learning_rate={type: loguniform, low: 1e-3, high: 1}",),
        *("dataset.max_samples_per_task=12", "dataset.num_tasks=25"),
    ]
