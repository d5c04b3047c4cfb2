"""What each field of a plan gives, and which of two sources of a value wins."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.keys import flattened
from himalaya_adapter.experiments.plans import Catalogue, generate_configs, read_plan
from himalaya_adapter.experiments.plans.method_defaults import default_values, method_keys, own_ranges
from himalaya_adapter.experiments.plans.method_names import OWN_METHODS, SIZE_KEYS
from himalaya_adapter.registry import METHODS

D = "experimental_design"
SUMMARY, SEARCH, SETTINGS = f"{D}/experiment_summary", f"{D}/hyperparameters_to_search", f"{D}/settings"
HIMALAYA, LORA = "proposed-iter1-SmolLM2-135M-Demo-Stream-6", "comparative-1-iter1-SmolLM2-135M-Demo-Stream-6"
RUN = {"run_id": "a", "method": "proposed", "model": "SmolLM2-135M"}
Write = Callable[..., str]


def generated(file: str, known: Catalogue) -> dict[str, dict[str, Any]]:
    configs = generate_configs(read_plan(file), known)
    return {config.run_id: flattened(yaml.safe_load(config.text)) for config in configs}


def test_a_plan_of_fields_alone(plan_file: Write, known: Catalogue) -> None:
    runs = generated(plan_file(), known)
    assert list(runs) == [HIMALAYA, LORA]
    ours, theirs = runs.values()
    assert ours["dataset.name"] == "demo_stream_6"
    assert ours["dataset.num_tasks"] == 6
    assert ours["model.backbone.name"] == ours["dataset.tokenizer"] == "smollm2-135m"
    assert "model.backbone.quantisation" not in ours
    assert (ours["evaluation.primary_metric"], ours["optuna.direction"]) == ("forgetting", "minimize")
    assert "hardware.gpu_type" not in ours
    assert (theirs["method"], theirs["method_name"], theirs["model.adapter.type"]) == ("comparative", "LoRA-8", "LORA")
    assert theirs["model.adapter.options.r"] == 8
    assert ours["training.learning_rate"] == theirs["training.learning_rate"] == 0.01, "the range's centre"
    assert not any("kd_tree" in key for key in theirs)


def test_json_is_read_as_yaml_is(plan_file: Write, known: Catalogue, tmp_path: Path) -> None:
    file = plan_file()
    (tmp_path / "plan.json").write_text(json.dumps(yaml.safe_load(Path(file).read_text(encoding="utf-8"))))
    assert generated(str(tmp_path / "plan.json"), known) == generated(file, known)


def test_the_name_of_a_method_gives_its_size(plan_file: Write, known: Catalogue) -> None:
    methods = ["LoRA-16 (low rank)", "lilac", "GloDiS-64 – global atoms", "ReFT-LoRe", "O-LoRA, orthogonal", "vera"]

    runs = [*generated(plan_file({f"{D}/comparative_methods": methods}), known).values()][1:]
    types = [run["model.adapter.type"] for run in runs]
    assert types == ["LORA", "LILAC", "GLODIS", "LOREFT", "O_LORA", "VERA"]
    assert runs[0]["model.adapter.options.r"] == 16
    assert runs[2]["model.adapter.options.dictionary_size"] == 64
    names = ["LoRA-16", "lilac", "GloDiS-64", "ReFT-LoRe", "O-LoRA", "vera"]
    assert [run["method_name"] for run in runs] == names


def test_prose_is_read_where_no_field_says_it(plan_file: Write, known: Catalogue) -> None:
    prose = "A “Demo Stream 6” collection of 12 tasks; at most 1,500 per task. EN→DE, Swahili; 5 languages."
    method = "HIMALAYA (x) has a 32-atom core and < 1.5 MB."
    changes = {SUMMARY: prose, f"{D}/datasets_to_use": [], f"{D}/proposed_method": method}
    ours, theirs = generated(plan_file(changes), known).values()
    for run in (ours, theirs):
        assert run["dataset.name"] == "demo_stream_6"
        assert run["dataset.num_tasks"] == 12
        assert run["dataset.max_samples_per_task"] == 1500
        assert run["dataset.languages"] == ["en", "de", "sw", "multi"]
    assert ours["model.adapter.core_dictionary.num_atoms"] == 32
    assert ours["model.adapter.total_parameter_budget_mb"] == 1.5
    assert "model.adapter.total_parameter_budget_mb" not in theirs, "its text does not say it"


def test_settings_win_over_prose_and_defaults(plan_file: Write, known: Catalogue) -> None:
    settings = {"num_tasks": 4, "batch_size": 2, "temperature_init": 0.7, "lora_alpha": 32, "lr": "2e-3"}
    settings["max_test_samples_per_task"] = 50
    ours, theirs = generated(plan_file({SETTINGS: settings}), known).values()
    for run in (ours, theirs):
        assert run["dataset.num_tasks"] == 4
        assert run["training.batch_size"] == 2
        assert run["training.learning_rate"] == 2e-3
        assert run["dataset.max_test_samples_per_task"] == 50
    assert ours["model.adapter.router.temperature_init"] == 0.7
    assert theirs["model.adapter.options.lora_alpha"] == 32
    assert not any("temperature" in key for key in theirs)


def test_settings_of_a_run_win_over_those_of_the_plan(plan_file: Write, known: Catalogue) -> None:
    runs = [
        RUN | {"settings": {"batch_size": 1, "max_updates_per_task": 7}},
        RUN | {"run_id": "b", "settings": {"model.adapter.options.growth_window": 50}},
    ]
    changes = {"experiment_runs": runs, SETTINGS: {"batch_size": 2}}
    changes[SEARCH] = {"model.adapter.options.growth_window": "10-60"}
    first, second = generated(plan_file(changes), known).values()
    assert (first["training.batch_size"], second["training.batch_size"]) == (1, 2)
    assert first["training.max_updates_per_task"] == 7
    assert second["model.adapter.options.growth_window"] == 50
    assert second["optuna.search_space.growth_window.low"] == 10
    assert not any("optuna" in key for key in first), "it does not have the option"


def test_without_a_search_no_search(plan_file: Write, known: Catalogue) -> None:
    for run in generated(plan_file({SEARCH: {}}), known).values():
        assert not any(key.startswith("optuna") for key in run)
        assert run["training.learning_rate"] == default_values(run["model.adapter.type"])["training.learning_rate"]


def test_a_name_of_the_plan_becomes_one_that_the_search_reads(plan_file: Write, known: Catalogue) -> None:
    search = {
        "r": "4-64",
        "batch-size": "2,4",
        "fisher_steps": "5-50",
        "tau": {"type": "uniform", "low": "7e-1", "high": 0.9},
    }
    runs = generated(plan_file({SEARCH: search}), known)
    ours = runs[HIMALAYA]
    assert runs[LORA]["optuna.search_space.r.type"] == "int"
    assert "optuna.search_space.r.type" not in ours
    assert ours["optuna.search_space.training_batch_size.choices"] == [2, 4]
    assert ours["training.batch_size"] == 2
    assert ours["optuna.search_space.fisher_projection_steps.type"] == "int"
    assert ours["optuna.search_space.fisher_projection_steps.log"] is True
    assert ours["optuna.search_space.similarity_threshold_tau.low"] == 0.7


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("SmolLM2-135M (bfloat16, 135M)", {"name": "smollm2-135m", "dtype": "bfloat16"}),
        ("LLAMA-7B (4-BIT, 7 B parameters)", {"name": "owner/Llama-7b", "quantisation": "4-bit"}),
        ("someone/model-1.5b", {"name": "someone/model-1.5b"}),
    ],
)
def test_a_model_names_a_backbone(model: str, values: dict[str, str], plan_file: Write, known: Catalogue) -> None:
    run = next(iter(generated(plan_file({f"{D}/models_to_use": [model]}), known).values()))
    backbone = {key.rpartition(".")[2]: value for key, value in run.items() if key.startswith("model.backbone.")}
    assert backbone == values | {"frozen": True}


def test_a_revision_that_a_run_cannot_load_is_told(
    plan_file: Write, known: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    resources = {"hugging_face": {"models": [{"id": "someone/Other-1b", "sha": "123", "likes": 3}]}}
    changes = {f"{D}/external_resources": resources, f"{D}/models_to_use": ["Other 1B"]}
    with caplog.at_level(logging.WARNING):
        run = next(iter(generated(plan_file(changes), known).values()))
    assert run["model.backbone.name"] == "someone/Other-1b"
    assert "someone/Other-1b: a run loads its newest revision, not the plan's 123" in caplog.text


@pytest.mark.parametrize(
    ("metric", "key", "direction"),
    [
        ("average forgetting", "forgetting", "minimize"),
        ("Average anytime accuracy", "average_anytime_accuracy", "maximize"),
        ("area under the curve of retained accuracy", "retained_accuracy_auc", "maximize"),
        ("forgetting ↑", "forgetting", "maximize"),
        ("retention ↓; secondary: CPU latency overhead", "retention", "minimize"),
    ],
)
def test_a_metric_is_found_by_its_words(
    metric: str, key: str, direction: str, plan_file: Write, known: Catalogue
) -> None:
    run = next(iter(generated(plan_file({"hypothesis": {"primary_metric": metric}}), known).values()))
    assert (run["evaluation.primary_metric"], run["optuna.direction"]) == (key, direction)
    assert ("evaluation.secondary_metric" in run) == ("secondary" in metric)


def test_the_machine(plan_file: Write, known: Catalogue) -> None:
    machine = {"gpu": "NVIDIA RTX 4090 or better", "vram": "24 GB or more"}
    run = next(iter(generated(plan_file({"environment": machine}), known).values()))
    assert (run["hardware.gpu_type"], run["hardware.max_gpu_mem_gb"]) == ("RTX-4090-24GB", 24.0)


MODELS, DATASETS, RIVALS = f"{D}/models_to_use", f"{D}/datasets_to_use", f"{D}/comparative_methods"
RESOURCES, METHOD = f"{D}/external_resources", f"{D}/proposed_method"
OTHER_REVISION = {"hugging_face": {"models": [{"id": "owner/Llama-7b", "sha": "def"}]}}
TWO_MODELS = {"hugging_face": {"models": [{"id": "a/m"}, {"id": "b/m"}]}}


def one_run(**changes: Any) -> dict[str, Any]:
    return {"experiment_runs": [RUN | changes]}


def metric(text: str) -> dict[str, Any]:
    return {"hypothesis": {"primary_metric": text}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({RIVALS: ["LoRAX"]}, "unknown method in experimental_design.comparative_methods[0] 'LoRAX'; did you mean"),
        ({RIVALS: ["VeRA-8"]}, "comparative_methods[0]: what 8 in 'VeRA-8' means for VERA is not known"),
        ({METHOD: "A new adapter whose text has no name at its beginning"}, "method in experimental_design.proposed"),
        ({MODELS: ["SmolLM2-135M (3-bit)"]}, "unknown quantisation of model 'SmolLM2-135M (3-bit)' '3-bit'; did you"),
        ({MODELS: ["SmolLM2-135M (4-bit, 4-bit QLoRA)"]}, "has two values for model.backbone.quantisation"),
        ({MODELS: ["SmolLM"]}, "unknown model in models_to_use 'SmolLM'; did you mean 'smollm2-135m'"),
        ({MODELS: ["(4-bit)"]}, "model '(4-bit)': expected NAME"),
        ({RESOURCES: OTHER_REVISION, MODELS: ["Llama-7b"]}, "revision abc is what a run loads"),
        ({RESOURCES: TWO_MODELS, MODELS: ["m"]}, "model 'm' may mean a/m or b/m"),
        ({DATASETS: ["demo"]}, "unknown dataset 'demo'; did you mean 'demo_stream_6'"),
        ({DATASETS: []}, "experimental_design.datasets_to_use is empty"),
        ({MODELS: ["smollm2-135m", "SmolLM2-135M"]}, "gives 2 runs the run_id 'proposed-iter1-smollm2-135m-demo"),
        (one_run(method="ablation-1"), "unknown experiment_runs[0].method 'ablation-1'"),
        (one_run(method="comparative-2"), "did you mean 'comparative-1'"),
        (one_run(model="GPT"), "unknown experiment_runs[0].model 'GPT'; did you mean 'SmolLM2-135M'"),
        (one_run(dataset="other"), "unknown experiment_runs[0].dataset 'other'"),
        (one_run() | {DATASETS: ["a", "b"]}, "experiment_runs[0] has no 'dataset'; expected one of a, b"),
        (one_run(run_id="../a"), "run '../a': run_id=../a of run '../a': expected the name of a folder"),
        (one_run(settings={"lora_alpha": 3}), "unknown key in experiment_runs[0].settings 'lora_alpha'"),
        (one_run(settings={"report_to": "${oc.env:HOME}"}), "'${' asks for a value from elsewhere"),
        (one_run(run_id="${oc.env:HOME}"), "'${' asks for a value from elsewhere"),
        (metric("BLEU"), "unknown hypothesis.primary_metric 'BLEU'"),
        (metric("retention; secondary: energy"), "unknown secondary metric in hypothesis.primary_metric 'energy'"),
        (metric("forgetting and retention"), "may mean forgetting or retention: name one"),
        ({f"{D}/evaluation_metrics": ["BLEU"]}, "evaluation_metrics: none is computed by a run; known: retained"),
        ({"environment": {"vram": "much"}}, "environment.vram is 'much'; expected a number of GB"),
        ({SUMMARY: "25 tasks, then 30 tasks"}, "experiment_summary says 25 and 30 for dataset.num_tasks: give"),
        ({SETTINGS: {"steps": 3}}, "experimental_design.settings.steps may mean training."),
        ({SETTINGS: {"lr": 1, "learning_rate": 2}}, "'lr' both stand for training.learning_rate"),
        ({SETTINGS: {"dropout": 3}}, "unknown key in experimental_design.settings 'dropout'"),
        ({SETTINGS: {"batch_size": "many"}}, "key 'training.batch_size': found \"many\", expected a whole number"),
        ({SETTINGS: {"dictionary_size": 3}}, "stands for model.adapter.dictionary_size, which no run here takes"),
        ({SETTINGS: {"dataset.name": "other"}}, "settings.dataset.name stands for dataset.name, which no run here"),
        ({SEARCH: {"lr": "fast"}}, "experimental_design.hyperparameters_to_search.lr is 'fast'; expected low-high"),
        ({SEARCH: {"lr": "3e-4-1e-5"}}, "hyperparameters_to_search.lr is '3e-4-1e-5': low=0.0003, high=1e-05: exp"),
        ({SEARCH: {"lr": "1-2", "learning_rate": "1-2"}}, "'lr' both stand for training.learning_rate"),
        ({SEARCH: {"steps": "1-3"}}, "hyperparameters_to_search.steps may mean training."),
        ({SEARCH: {"fanout": "4,many"}}, "fanout holds 'many': model.kd_tree.fanout: expected a whole number"),
        ({SEARCH: {"batch_size": "0,4"}}, "hyperparameters_to_search.batch_size holds 0: training.batch_size=0"),
        ({SEARCH: {"momentum": "0-1"}}, "unknown key in experimental_design.hyperparameters_to_search 'momentum'"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_field(
    changes: dict[str, Any], message: str, plan_file: Write, known: Catalogue
) -> None:
    file = plan_file(changes)
    with pytest.raises(HimalayaError) as caught:
        generated(file, known)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"plan {file}: ")
    assert "\n" not in str(caught.value)


def test_the_defaults_hold_all_keys_of_our_method_and_no_other_has_them() -> None:
    himalayas = {*METHODS["HIMALAYA"].options, *METHODS["HIMALAYA"].fixed}
    assert himalayas <= default_values("HIMALAYA").keys()
    for method in (*OWN_METHODS, "LORA", "VERA"):
        keys = method_keys(method)
        assert method == "HIMALAYA" or not himalayas & set(keys)
        assert "training.learning_rate" in keys
    assert own_ranges("LILAC").keys() == {"lora_rank", "ewc_lambda"}
    assert own_ranges("HIMALAYA") == own_ranges("VERA") == {}
    assert SIZE_KEYS["LORA"] in default_values("LORA")
