"""The source's own run config runs as it is: every key of it has an effect or is refused, none is ignored."""

import copy
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from source_runs import changed_run, leaves, read

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.method_options import KEYS_OF_METHOD, adapter_options
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.methods import HimalayaConfig
from himalaya_adapter.methods.construction import run_method

OPTION_OF_KEY, FIXED_KEYS = KEYS_OF_METHOD["HIMALAYA"].options, KEYS_OF_METHOD["HIMALAYA"].fixed
NAME = "proposed-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"
FILE = CONF / "run" / f"{NAME}.yaml"
SHA256 = "c65b06b297efc657b9279521c22ff0d65016ad4f5ced8707cbed8b2cf06bee4c"
# Another value of each key that sets an option of the method.
OTHER_OPTIONS = {
    "model.adapter.core_dictionary.num_atoms": 20,
    "model.adapter.elastic_dictionary.max_atoms": 12,
    "model.adapter.elastic_dictionary.index": "scan",
    "model.adapter.elastic_dictionary.quantisation_bits": 4,
    "model.adapter.router.hidden_params": 40000,
    "model.adapter.router.expected_active_atoms": 2,
    "model.adapter.router.temperature_init": 0.5,
    "model.kd_tree.fanout": 16,
    "model.kd_tree.leaf_size": 2,
    "training.similarity_threshold_tau": 0.9,
    "training.fisher_projection_steps": 10,
}
# Another value of each key that other parts of a run read under its own name.
OTHER_VALUES = {
    "run_id": "other",
    "method": "comparative",
    "method_name": "other",
    "model.backbone.quantisation": None,
    "model.adapter.total_parameter_budget_mb": 3.0,
    "dataset.name": "demo_stream_6",
    "dataset.num_tasks": 6,
    "dataset.max_samples_per_task": 100,
    "dataset.languages": ["en"],
    "dataset.max_seq_length": 512,
    "training.task_epochs": 2,
    "training.max_updates_per_task": 100,
    "training.batch_size": 4,
    "training.learning_rate": 1e-3,
    "training.weight_decay": 0.0,
    "training.lr_scheduler": "cosine",
    "training.warmup_steps": 0,
    "training.gradient_checkpointing": False,
    "training.grad_accum_steps": 2,
    "training.mixed_precision": "no",
    "evaluation.primary_metric": "forgetting",
    "evaluation.secondary_metric": None,
    "evaluation.eval_batch_size": 8,
    "evaluation.cpu_latency_device": "other",
    "hardware.gpu_type": "H200",
    "hardware.max_gpu_mem_gb": 140,
    "optuna.n_trials": 3,
    "optuna.direction": "minimize",
    "optuna.search_space.learning_rate.type": "uniform",
    "optuna.search_space.learning_rate.low": 2e-5,
    "optuna.search_space.learning_rate.high": 2e-4,
    "optuna.search_space.similarity_threshold_tau.type": "loguniform",
    "optuna.search_space.similarity_threshold_tau.low": 0.8,
    "optuna.search_space.similarity_threshold_tau.high": 0.85,
    "optuna.search_space.kd_tree_fanout.choices": [4, 8],
    "optuna.search_space.router_temperature_init.type": "loguniform",
    "optuna.search_space.router_temperature_init.low": 0.6,
    "optuna.search_space.router_temperature_init.high": 1.5,
    "optuna.search_space.weight_decay.low": 0.001,
    "optuna.search_space.weight_decay.high": 0.02,
}
# Of these, the ones that a plain run writes down and does not act on: they are for a search and for comparisons.
WRITTEN_DOWN = ("method", "evaluation.primary_metric", "optuna.")
# Keys that have one right value in this run: another one, and what is said about it.
REFUSED = {
    "model.backbone.name": ("smollm2-135m", "dataset.tokenizer=NousResearch/Llama-2-7b-hf"),
    "model.backbone.frozen": (False, "expected true: only the adapter is trained"),
    "model.adapter.type": ("LORA", "is a key of HIMALAYA, model.adapter.type is LORA"),
    "model.adapter.core_dictionary.init": ("random", "init=random of run '{name}': expected isotropic"),
    "model.adapter.coeff_precision_bits": (4, "coeff_precision_bits=4 of run '{name}': expected 8"),
    "model.norm_rescaling": (False, "model.norm_rescaling=false of run '{name}': expected true; the bound on"),
    "dataset.tokenizer": ("gpt2", "dataset.tokenizer=gpt2 of run '{name}': expected NousResearch/Llama-2-7b-hf"),
    "dataset.streaming": (False, "expected true: tasks come one after another"),
    "training.optimizer": ("sgd", "unknown training.optimizer 'sgd'; did you mean 'adamw'"),
    "training.router_temperature_anneal": ("cosine", "expected linear; the gates' temperature falls linearly"),
    "optuna.search_space.kd_tree_fanout.type": ("int", "choices belong to a categorical, not to int"),
    "optuna.search_space.weight_decay.type": ("loguniform", "low=0.0: expected a number above 0"),
}


SOURCE = read(NAME)


def changed(path: str, value: Any, folder: Path) -> RunConfig:
    """The composed run of the source's file with one leaf changed."""
    return changed_run(NAME, path, value, folder)


def test_the_file_is_the_sources_byte_for_byte() -> None:
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256


def test_every_key_is_looked_at_below() -> None:
    assert sorted(leaves(SOURCE)) == sorted([*OTHER_OPTIONS, *OTHER_VALUES, *REFUSED])
    assert OPTION_OF_KEY.keys() == OTHER_OPTIONS.keys()
    assert FIXED_KEYS.keys() < REFUSED.keys()


def test_the_run_is_the_method_as_the_source_sets_it() -> None:
    run = compose_run([f"run={NAME}"]).run
    check_run(run)
    assert run.training.learning_rate == 2e-4
    config = run_method(run)
    assert isinstance(config, HimalayaConfig)
    for key, option in OPTION_OF_KEY.items():
        assert getattr(config, option) == leaves(SOURCE)[key]


@pytest.mark.parametrize("path", OTHER_OPTIONS)
def test_a_key_sets_its_option_and_no_other(path: str, tmp_path: Path) -> None:
    before = run_method(compose_run([f"run={NAME}"]).run).to_dict()
    run = changed(path, OTHER_OPTIONS[path], tmp_path)
    check_run(run)
    after = run_method(run).to_dict()
    assert {name for name in before if before[name] != after[name]} == {OPTION_OF_KEY[path]}
    assert after[OPTION_OF_KEY[path]] == OTHER_OPTIONS[path]


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_a_key_changes_the_run(path: str, tmp_path: Path) -> None:
    run = changed(path, OTHER_VALUES[path], tmp_path)
    check_run(run)
    value: Any = run
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == OTHER_VALUES[path]


@pytest.mark.parametrize("path", [path for path in OTHER_VALUES if not path.startswith(WRITTEN_DOWN)])
def test_a_key_is_read_by_what_runs(path: str) -> None:
    """By its section and name, in the source code outside the schema: a key that nothing reads would be ignored."""
    package = CONF.parent
    files = [file for file in package.rglob("*.py") if file.parent.name != "experiments"]
    name = r"\.".join(path.split(".")[-2:])
    assert any(re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("path", REFUSED)
def test_a_key_with_one_right_value_is_refused_by_name(path: str, tmp_path: Path) -> None:
    value, message = REFUSED[path]
    run = changed(path, value, tmp_path)
    with pytest.raises(HimalayaError) as caught:
        check_run(run)
    assert message.format(name=NAME) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [path for path in leaves(SOURCE) if "." in path])
def test_a_misspelt_key_is_refused(path: str, tmp_path: Path) -> None:
    content = copy.deepcopy(SOURCE)
    section = content
    *parents, last = path.split(".")
    for parent in parents:
        section = section[parent]
    section[f"{last}s_"] = section.pop(last)
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(HimalayaError, match=f"unknown key .*{path}s_'; did you mean '{path}'"):
        compose_run([f"run={file}"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.kd_tree.fanout=5", "fanout=5 is not one of 4, 8, 16 (the run sets it as model.kd_tree.fanout)"),
        ("training.similarity_threshold_tau=1.5", "(the run sets it as training.similarity_threshold_tau)"),
        ("model.adapter.elastic_dictionary.quantisation_bits=1", "quantisation_bits=1 is not one of 2, 3, 4"),
        ("model.adapter.core_dictionary.num_atoms=0", "(the run sets it as model.adapter.core_dictionary.num_atoms)"),
        ("model.adapter.router.temperature_init=0", "(the run sets it as model.adapter.router.temperature_init)"),
    ],
)
def test_what_the_method_refuses_names_the_key(word: str, message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        run_method(compose_run([f"run={NAME}", word]).run)
    assert message in str(caught.value)


def test_a_key_and_its_option_are_not_both_given() -> None:
    run = compose_run([f"run={NAME}", "model.adapter.options.core_atoms=24"]).run
    with pytest.raises(HimalayaError, match=r"num_atoms and model\.adapter\.options\.core_atoms of run .* same thing"):
        check_run(run)


def test_options_that_have_no_key_are_added() -> None:
    options = adapter_options(compose_run([f"run={NAME}", "model.adapter.options.growth_window=50"]).run)
    assert options["growth_window"] == 50
    assert options["core_atoms"] == 24


def test_the_seed_of_a_run_is_that_of_its_adapter_unless_it_has_its_own() -> None:
    assert run_method(compose_run([f"run={NAME}", "training.seed=7"]).run).seed == 7
    own = ["training.seed=7", "model.adapter.options.seed=3"]
    assert run_method(compose_run([f"run={NAME}", *own]).run).seed == 3


def test_a_file_of_the_users_overrides_nothing_by_absence(tmp_path: Path) -> None:
    """Without the keys, the method has its own defaults: nothing is set to null."""
    options = adapter_options(compose_run(["run=demo-himalaya"]).run)
    assert options == {}
