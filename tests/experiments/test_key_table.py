"""Every key of the schema is described from the schema itself, and the page of keys has them all."""

import importlib.util
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.experiments.keys import flattened
from himalaya_adapter.experiments.plans import Plan
from himalaya_adapter.experiments.schema import REQUIRED, keys_of

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_has_every_key_of_the_schema_and_its_meaning() -> None:
    described = [key.path for key in keys_of(RunConfig).values() if "NAME" not in key.path]
    run = compose_run(["run=demo-himalaya"]).run
    run.model.adapter.options = {}
    assert sorted(described) == sorted(flattened(asdict(run)).keys() | {"model.adapter.options"})
    for key in (*keys_of(RunConfig).values(), *keys_of(Plan).values()):
        assert key.meaning, f"{key.path} has no meaning beside its field"


def test_what_a_key_takes_is_told_in_words() -> None:
    expected = {
        "training.batch_size": "a whole number of at least 1",
        "training.max_updates_per_task": "a whole number of at least 1, or null",
        "training.learning_rate": "a number above 0",
        "training.warmup_steps": "a number of at least 0 and of at most 1000000",
        "training.seed": "a whole number of at least 0 and below 2147483648",
        "dataset.languages": "a list, or null",
        "model.norm_rescaling": "true or false, or null",
        "model.backbone.quantisation": "one of 4-bit, 4-bit QLoRA, or null",
        "model.adapter.options": "keys with values",
        "evaluation.rows": "all, last, or a number k for every k-th row",
        "optuna.search_space.NAME.low": "a number, or null",
    }
    for path, words in expected.items():
        assert keys_of(RunConfig)[path].expected == words
    assert keys_of(RunConfig)["training.learning_rate"].default == 0.001
    assert keys_of(RunConfig)["dataset.name"].default == REQUIRED


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_experiments", DOCS / "generate_experiments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_keys_has_a_row_for_every_key() -> None:
    page = generator().page()
    for key in keys_of(RunConfig).values():
        assert f"| `{key.path}` | {key.expected} | {key.default_text} |" in page
