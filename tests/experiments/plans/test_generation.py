"""What each field of a plan gives, which of two sources of a value wins, and that every value's origin is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from himalaya_adapter.cli import main
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.keys import flattened
from himalaya_adapter.experiments.plans import content_of, generate_configs, read_plan
from himalaya_adapter.experiments.plans.generation import Values

D = "experimental_design"
SUMMARY, SEARCH, SETTINGS = f"{D}/experiment_summary", f"{D}/hyperparameters_to_search", f"{D}/settings"
HIMALAYA, LORA = "proposed-iter1-smollm2-135m-demo_stream_6", "comparative-1-iter1-smollm2-135m-demo_stream_6"
RUN = {"run_id": "a", "method": "proposed", "model": "smollm2-135m"}
Write = Callable[..., str]


def written(file: str, *, strict: bool = False) -> list[Values]:
    return generate_configs(read_plan(file)[1], strict=strict)


def generated(file: str) -> dict[str, dict[str, Any]]:
    return {values["run_id"].value: flattened(content_of(values)) for values in written(file)}


def test_a_plan_of_fields_alone(plan_file: Write) -> None:
    runs = generated(plan_file())
    assert list(runs) == [HIMALAYA, LORA]
    ours, theirs = runs.values()
    assert ours["dataset.name"] == "demo_stream_6"
    assert ours["model.backbone.name"] == "smollm2-135m"
    assert "model.backbone.quantisation" not in ours
    assert (theirs["method"], theirs["method_name"], theirs["model.adapter.type"]) == ("comparative", "LoRA", "LORA")
    assert ours["training.learning_rate"] == 2e-4
    assert theirs["training.learning_rate"] == 1e-4
    assert not any("kd_tree" in key for key in theirs)


def test_no_number_is_read_from_prose(plan_file: Write) -> None:
    """Prose once gave 24, 16 and 3 for what it calls 20, 12 and 2, without a word."""
    method = "HIMALAYA: a fixed isotropic core D_c of 20 vectors and an elastic dictionary D_e with 12 slots; 2 atoms"
    (config, _) = written(plan_file({f"{D}/proposed_method": method, SUMMARY: "A stream of 25 tasks"}))
    origins = {key: one.origin for key, one in config.items()}
    assert origins["model.adapter.core_dictionary.num_atoms"] == "default"
    assert origins["model.adapter.elastic_dictionary.max_atoms"] == "default"
    assert origins["model.adapter.router.expected_active_atoms"] == "default"
    assert "dataset.num_tasks" not in origins


def test_json_is_read_as_yaml_is(plan_file: Write, tmp_path: Path) -> None:
    file = plan_file()
    (tmp_path / "plan.json").write_text(json.dumps(yaml.safe_load(Path(file).read_text(encoding="utf-8"))))
    assert generated(str(tmp_path / "plan.json")) == generated(file)


def test_settings_win_over_defaults_and_fields_and_go_to_the_runs_that_have_the_key(plan_file: Write) -> None:
    settings = {"dataset": {"num_tasks": 4}, "training.batch_size": 2, "training.learning_rate": 2e-3}
    settings |= {"model.adapter.router.temperature_init": 0.7, "model.adapter.ewc_lambda": 0.2}
    ours, theirs = generated(plan_file({SETTINGS: settings})).values()
    for run in (ours, theirs):
        assert run["dataset.num_tasks"] == 4
        assert run["training.batch_size"] == 2
        assert run["training.learning_rate"] == 2e-3
    assert ours["model.adapter.router.temperature_init"] == 0.7
    assert theirs["model.adapter.ewc_lambda"] == 0.2
    assert "model.adapter.ewc_lambda" not in ours, "it protects earlier tasks itself"
    assert not any("temperature" in key for key in theirs)


def test_an_option_with_dots_in_its_keys_stays_as_it_is(plan_file: Write) -> None:
    settings = {"model.adapter.options": {"rank_pattern": {"layers.0.q_proj": 4}}}
    (config,) = written(plan_file({"experiment_runs": [RUN | {"method": "comparative-1", "settings": settings}]}))
    assert content_of(config)["model"]["adapter"]["options"]["rank_pattern"] == {"layers.0.q_proj": 4}


def test_settings_of_a_run_win_over_those_of_the_plan(plan_file: Write) -> None:
    runs = [
        RUN | {"settings": {"training.batch_size": 1, "training.max_updates_per_task": 7}},
        RUN | {"run_id": "b", "settings": {"model.adapter.options.growth_window": 50}},
        RUN | {"run_id": "c", "settings": {"model.adapter.type": "VERA", "method_name": "VeRA"}},
    ]
    changes = {"experiment_runs": runs, SETTINGS: {"training.batch_size": 2}}
    changes[SEARCH] = {"model.adapter.options.growth_window": {"type": "int", "low": 10, "high": 60}}
    first, second, third = generated(plan_file(changes)).values()
    assert (first["training.batch_size"], second["training.batch_size"]) == (1, 2)
    assert first["training.max_updates_per_task"] == 7
    assert second["model.adapter.options.growth_window"] == 50
    assert second["optuna.search_space.model_adapter_options_growth_window.low"] == 10
    assert not any("search_space" in key for key in first), "it does not have the option"
    assert (third["model.adapter.type"], third["method_name"]) == ("VERA", "VeRA")


def test_every_key_has_its_origin(plan_file: Write) -> None:
    changes = {SETTINGS: {"training.batch_size": 2}, "experiment_runs": [RUN | {"settings": {"training.seed": 3}}]}
    (config,) = written(plan_file(changes))
    origins = {key: one.origin for key, one in config.items()}
    assert origins["training.batch_size"] == "experimental_design.settings"
    assert origins["training.seed"] == "experiment_runs[0].settings"
    assert origins["run_id"] == origins["model.backbone.name"] == "experiment_runs[0]"
    assert origins["training.learning_rate"] == "default"
    name = "optuna.search_space.learning_rate"
    assert origins[name] == "experimental_design.hyperparameters_to_search.learning_rate"
    assert origins["training.task_epochs"] == "default"


def test_strict_refuses_defaults(plan_file: Write) -> None:
    with pytest.raises(
        HimalayaError, match=r"the plan does not give .*training\.task_epochs.*: give them in settings"
    ):
        written(plan_file(), strict=True)


def test_origins_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "generate", "himalaya", "--strict", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "model.adapter.core_dictionary.num_atoms = 24  # experiment_runs[0].settings" in shown


MODELS, DATASETS, RIVALS = f"{D}/models_to_use", f"{D}/datasets_to_use", f"{D}/comparative_methods"
METHOD = f"{D}/proposed_method"


def one_run(**changes: Any) -> dict[str, Any]:
    return {"experiment_runs": [RUN | changes]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({RIVALS: ["LoRAX"]}, "unknown method in experimental_design 'LORAX'; did you mean 'LORA'"),
        ({METHOD: "A new adapter whose text has no name at its beginning"}, "unknown method in experimental_design"),
        (one_run() | {DATASETS: ["a", "b"]}, "unknown experiment_runs[0].dataset ''"),
        ({MODELS: ["a/b", "A/B"]}, "2 runs have the run_id 'proposed-iter1-a-b-demo_stream_6'"),
        (one_run(method="ablation-1"), "unknown experiment_runs[0].method 'ablation-1'"),
        (one_run(method="comparative-2"), "did you mean 'comparative-1'"),
        (one_run(model="GPT"), "unknown experiment_runs[0].model 'GPT'; did you mean 'smollm2-135m'"),
        (one_run(dataset="other"), "unknown experiment_runs[0].dataset 'other'"),
        ({"experiment_runs": [RUN, RUN | {"run_id": "A"}]}, "2 runs have the run_id 'a'"),
        (one_run(run_id="../a"), "run_id '../a' is not the name of a folder"),
        (one_run(settings={"lora_alpha": 3}), "unknown key of run 'a' 'lora_alpha'"),
        (one_run(settings={"training.report_to": "${oc.env:HOME}"}), "asks for a value from elsewhere"),
        (one_run(run_id="${oc.env:HOME}"), "asks for a value from elsewhere"),
        ({SETTINGS: {"training.steps": 3}}, "'training.steps'; did you mean 'training.save_steps'"),
        ({SETTINGS: {"training.seed": 1, "training": {"seed": 2}}}, "training.seed stands twice: as 2 and as 1"),
        ({SEARCH: {"model.adapter.options.r": "4-64"}}, "is '4-64'; expected {type: int or uniform, low: …"),
        ({SETTINGS: {"training.batch_size": "many"}}, 'found "many", expected a whole number of at least 1'),
        ({SETTINGS: {"model.adapter.dictionary_size": 3}}, "no run of the plan has model.adapter.dictionary_size"),
        ({SEARCH: {"lilac_dictionary_size": "3-9"}}, "unknown key in experimental_design.hyperparameters_to_search"),
        ({SEARCH: {"adapter_dictionary_size": "3-9"}}, "dictionary_size, which no run of the plan has: delete it"),
        ({SEARCH: {"learning_rate": "fast"}}, "hyperparameters_to_search.learning_rate is 'fast'; expected low-high"),
        ({SEARCH: {"learning_rate": "3e-4-1e-5"}}, "`low <= high` must hold, but got (low=0.0003, high=1e-05)"),
        ({SEARCH: {"learning_rate": {"lo": 1}}}, "unknown key of experimental_design.hyperparameters_to_search.learn"),
        (
            {SEARCH: {"adamw_weight_decay": "0-1", "weight_decay": "0-2"}},
            "has training.weight_decay twice",
        ),
        ({SEARCH: {"name": "a,b"}}, "hyperparameters_to_search.name may mean model.backbone.name or"),
        (
            {SEARCH: {"fanout": "4,many"}},
            "key 'model.kd_tree.fanout' of run 'proposed-iter1",
        ),
        ({SEARCH: {"training.batch_size": "0,4"}}, "found 0, expected a whole number of at least 1"),
        ({SEARCH: {"momentum": "0-1"}}, "unknown key in experimental_design.hyperparameters_to_search 'momentum'"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_field(
    changes: dict[str, Any], message: str, plan_file: Write
) -> None:
    file = plan_file(changes)
    with pytest.raises(HimalayaError) as caught:
        generated(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
