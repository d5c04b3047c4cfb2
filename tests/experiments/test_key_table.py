"""Every key of the schema is described from the schema itself, and the page of keys has them all."""

import importlib.util
from pathlib import Path
from types import ModuleType

from omegaconf import OmegaConf

from himalaya_adapter.experiments import RunConfig
from himalaya_adapter.experiments.key_table import key_named, run_keys
from himalaya_adapter.experiments.keys import leaf_keys

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_has_every_key_of_the_schema_and_its_meaning() -> None:
    described = [key.path for key in run_keys().values() if not key.section and "NAME" not in key.path]
    schema = leaf_keys(OmegaConf.structured(RunConfig))
    assert sorted(described) == sorted(key for key in schema if key != "optuna.search_space")
    for key in run_keys().values():
        assert key.meaning or key.path.endswith(".NAME"), f"{key.path} has no line in the docstring of its dataclass"


def test_what_a_key_takes_is_told_in_words() -> None:
    expected = {
        "training.batch_size": "a whole number",
        "training.max_updates_per_task": "a whole number, or null",
        "dataset.languages": "a list of text, or null",
        "model.norm_rescaling": "true or false, or null",
        "model.backbone.quantisation": "one of 4-bit, 4-bit QLoRA, or null",
        "model.adapter.core_dictionary.init": "isotropic, or null",
        "model.adapter.options": "keys with values",
        "model.kd_tree": "keys with values (fanout, leaf_size)",
        "optuna.search_space.learning_rate": "keys with values (type, low, high, log, step, choices)",
        "optuna.search_space.learning_rate.low": "a number, or null",
    }
    for path, words in expected.items():
        key = key_named(path)
        assert key is not None
        assert key.expected == words
    assert key_named("training.batchsize") is None
    assert run_keys()["training.learning_rate"].default == "0.001"
    assert run_keys()["dataset.name"].default == "required"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_experiments", DOCS / "generate_experiments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_keys_has_a_row_for_every_key() -> None:
    page = generator().page()
    for key in run_keys().values():
        assert key.section or f"| `{key.path}` | {key.expected} | {key.default} |" in page
