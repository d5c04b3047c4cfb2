"""The source's run config of LILAC runs as it is: every key of it has an effect or is refused, none is ignored."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from source_runs import changed_run, leaves, read

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.method_options import KEYS_OF_METHOD, adapter_options
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.methods import LilacConfig
from himalaya_adapter.methods.construction import run_method

NAME = "comparative-1-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"
SHA256 = "20d6931cd8fca025bad5938206b64f2d21474288bffb57040d20b4651834512a"
SOURCE = leaves(read(NAME))
# Another value of each key that sets an option of the method.
OTHER_OPTIONS = {
    "model.adapter.lora_rank": 8,
    "model.adapter.dictionary_size": 32,
    "model.adapter.quantisation_bits": 4,
}
# Another value of each key that other parts of a run read under its own name.
OTHER_VALUES = {
    "run_id": "other",
    "method": "proposed",
    "method_name": "other",
    "model.backbone.quantisation": None,
    "model.adapter.ewc_lambda": 0.1,
    "model.adapter.total_parameter_budget_mb": 3.0,
    "dataset.name": "demo_stream_6",
    "dataset.num_tasks": 6,
    "dataset.max_samples_per_task": 100,
    "dataset.max_seq_length": 512,
    "training.task_epochs": 2,
    "training.max_updates_per_task": 100,
    "training.batch_size": 4,
    "training.learning_rate": 1e-3,
    "training.weight_decay": 0.01,
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
    "optuna.search_space.lora_rank.choices": [2, 4],
    "optuna.search_space.ewc_lambda.type": "uniform",
    "optuna.search_space.ewc_lambda.low": 0.1,
    "optuna.search_space.ewc_lambda.high": 0.5,
    "optuna.search_space.weight_decay.low": 0.001,
    "optuna.search_space.weight_decay.high": 0.02,
}
# Keys that have one right value in this run: another one, and what is said about it.
REFUSED = {
    "model.backbone.name": ("smollm2-135m", "dataset.tokenizer=NousResearch/Llama-2-7b-hf"),
    "model.backbone.frozen": (False, "expected true: only the adapter is trained"),
    "model.adapter.type": ("LORA", "is a key of LILAC, model.adapter.type is LORA"),
    "dataset.tokenizer": ("gpt2", "dataset.tokenizer=gpt2 of run '{name}': expected NousResearch/Llama-2-7b-hf"),
    "dataset.streaming": (False, "expected true: tasks come one after another"),
    "training.optimizer": ("sgd", "unknown training.optimizer 'sgd'; did you mean 'adamw'"),
    "optuna.search_space.lora_rank.type": ("int", "choices belong to a categorical, not to int"),
    "optuna.search_space.weight_decay.type": ("loguniform", "low=0.0: expected a number above 0"),
}


def changed(path: str, value: Any, folder: Path) -> RunConfig:
    return changed_run(NAME, path, value, folder)


def test_the_file_is_the_sources_byte_for_byte() -> None:
    assert hashlib.sha256((CONF / "run" / f"{NAME}.yaml").read_bytes()).hexdigest() == SHA256


def test_every_key_is_looked_at_below() -> None:
    assert sorted(SOURCE) == sorted([*OTHER_OPTIONS, *OTHER_VALUES, *REFUSED])
    assert KEYS_OF_METHOD["LILAC"].options.keys() == OTHER_OPTIONS.keys()


def test_the_run_is_the_method_as_the_source_sets_it() -> None:
    run = compose_run([f"run={NAME}"]).run
    check_run(run)
    assert run.training.learning_rate == 1e-4
    assert run.model.adapter.ewc_lambda == 0.4
    config = run_method(run)
    assert isinstance(config, LilacConfig)
    assert (config.lora_rank, config.dictionary_size, config.quantisation_bits) == (4, 64, 8)


@pytest.mark.parametrize("path", OTHER_OPTIONS)
def test_a_key_sets_its_option_and_no_other(path: str, tmp_path: Path) -> None:
    before = run_method(compose_run([f"run={NAME}"]).run).to_dict()
    run = changed(path, OTHER_OPTIONS[path], tmp_path)
    check_run(run)
    after = run_method(run).to_dict()
    assert {name for name in before if before[name] != after[name]} == {KEYS_OF_METHOD["LILAC"].options[path]}
    assert after[path.split(".")[-1]] == OTHER_OPTIONS[path]


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_a_key_changes_the_run(path: str, tmp_path: Path) -> None:
    run = changed(path, OTHER_VALUES[path], tmp_path)
    check_run(run)
    value: Any = run
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == OTHER_VALUES[path]


@pytest.mark.parametrize("path", REFUSED)
def test_a_key_with_one_right_value_is_refused_by_name(path: str, tmp_path: Path) -> None:
    value, message = REFUSED[path]
    run = changed(path, value, tmp_path)
    with pytest.raises(HimalayaError) as caught:
        check_run(run)
    assert message.format(name=NAME) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.adapter.lora_rank=0"], "lora_rank=0 must be at least 1 (the run sets it as model.adapter.lora_rank)"),
        (["model.adapter.quantisation_bits=1"], "(the run sets it as model.adapter.quantisation_bits)"),
        (
            ["model.adapter.options.lora_rank=2"],
            "model.adapter.lora_rank and model.adapter.options.lora_rank of run '{name}' set the same thing",
        ),
        (
            ["model.kd_tree.fanout=4"],
            "model.kd_tree.fanout of run '{name}' is a key of HIMALAYA, model.adapter.type is",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(words: list[str], message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        run_method(compose_run([f"run={NAME}", *words]).run)
    assert message.format(name=NAME) in str(caught.value)


@pytest.mark.parametrize("key", OTHER_OPTIONS)
@pytest.mark.parametrize("method", ["HIMALAYA", "LORA", "GLODIS"])
def test_a_key_of_lilac_is_refused_for_another_method(key: str, method: str) -> None:
    words = ["run=demo-lora", "model.adapter.options={}", f"model.adapter.type={method}", f"{key}=4"]
    with pytest.raises(HimalayaError, match=rf"^{re.escape(key)} of run 'lora' is a key of LILAC, .* is {method}: "):
        check_run(compose_run(words).run)


def test_elastic_weight_consolidation_is_for_every_method_but_himalaya() -> None:
    for name in ("demo-lora", "demo-lilac", "demo-coltas", "demo-glodis"):
        run = compose_run([f"run={name}", "model.adapter.ewc_lambda=0.5"]).run
        check_run(run)
        assert "ewc_lambda" not in adapter_options(run)
    message = r"^model\.adapter\.ewc_lambda=0\.5 of run 'himalaya': expected null: HIMALAYA protects earlier tasks"
    with pytest.raises(HimalayaError, match=message):
        check_run(compose_run(["run=demo-himalaya", "model.adapter.ewc_lambda=0.5"]).run)


@pytest.mark.parametrize("name", ["lilac", "coltas", "glodis"])
def test_the_demo_of_a_rival_differs_from_loras_in_the_method_and_its_rate_alone(name: str) -> None:
    ours, loras = leaves(read(f"demo-{name}")), leaves(read("demo-lora"))
    differing = {key for key in ours.keys() | loras.keys() if ours.get(key) != loras.get(key)}
    own = {"run_id", "method_name", "training.learning_rate"}
    assert {key for key in differing if not key.startswith("model.adapter.")} <= own
    assert run_method(compose_run([f"run=demo-{name}"]).run).peft_type.value == name.upper()
