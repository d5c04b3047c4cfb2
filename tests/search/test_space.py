"""What a search may vary, and how a trial's values get into its run config."""

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.search.space import direction_of, searched_keys, trial_run, with_values

SOURCE = "run=proposed-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"


def lora(*words: str) -> RunConfig:
    return compose_run(["run=lora-package25", "run_id=lora", *words]).run


def one_key(text: str, name: str = "learning_rate") -> Any:
    (found,) = searched_keys(lora(f"optuna.search_space.{name}={text}"))
    return found


@pytest.mark.parametrize(
    ("text", "name", "distribution"),
    [
        ("{type: uniform, low: 0.5, high: 1}", "learning_rate", FloatDistribution(0.5, 1.0)),
        ("{type: uniform, low: 0.5, high: 1, step: 0.25}", "learning_rate", FloatDistribution(0.5, 1.0, step=0.25)),
        ("{type: loguniform, low: 1e-5, high: 1}", "learning_rate", FloatDistribution(1e-5, 1.0, log=True)),
        ("{type: int, low: 1, high: 8}", "r", IntDistribution(1, 8)),
        ("{type: int, low: 1, high: 8, log: true}", "r", IntDistribution(1, 8, log=True)),
        ("{type: int, low: 2, high: 8, step: 2}", "r", IntDistribution(2, 8, step=2)),
        (
            "{type: categorical, choices: [linear, cosine]}",
            "lr_scheduler",
            CategoricalDistribution(["linear", "cosine"]),
        ),
    ],
)
def test_each_type_is_the_distribution_that_it_says(text: str, name: str, distribution: Any) -> None:
    assert one_key(text, name).distribution == distribution


def test_the_search_space_of_the_source() -> None:
    keys = {one.name: one.key for one in searched_keys(compose_run([SOURCE]).run)}
    assert keys == {
        "learning_rate": "training.learning_rate",
        "similarity_threshold_tau": "training.similarity_threshold_tau",
        "kd_tree_fanout": "model.kd_tree.fanout",
        "router_temperature_init": "model.adapter.router.temperature_init",
        "weight_decay": "training.weight_decay",
    }


def test_a_choice_may_be_a_list() -> None:
    found = one_key("{type: categorical, choices: [[q_proj], [q_proj, v_proj]]}", "target_modules")
    values = [found.value(stored) for stored in found.distribution.choices]
    assert values == [["q_proj"], ["q_proj", "v_proj"]]
    run = with_values(lora(), {found.key: values[0]})
    assert run.model.adapter.options["target_modules"] == ["q_proj"]


def test_values_are_set_and_nothing_else() -> None:
    run = lora()
    changed = with_values(run, {"training.learning_rate": 0.5, "model.adapter.options.r": 3})
    assert (changed.training.learning_rate, changed.model.adapter.options["r"]) == (0.5, 3)
    assert (
        with_values(changed, {"training.learning_rate": run.training.learning_rate, "model.adapter.options.r": 8})
        == run
    )


def test_a_trial_learns_the_searchs_stream_and_is_scored_on_validation_items() -> None:
    words = [
        "optuna.stream=mine.yaml",
        "dataset.num_tasks=6",
        "dataset.languages=[en]",
        "dataset.max_samples_per_task=5",
    ]
    run = trial_run(lora(*words, "mode=trial", "training.report_to=tensorboard"))
    assert (run.dataset.name, run.dataset.num_tasks, run.dataset.languages) == ("mine.yaml", None, None)
    assert (run.evaluation.split, run.evaluation.rows, run.training.report_to) == ("validation", "all", "none")
    assert run.dataset.max_samples_per_task == 5
    assert not run.optuna.search_space
    assert trial_run(lora()).dataset.name == "validation_stream"


def test_the_direction_is_what_is_better_unless_it_is_given() -> None:
    assert direction_of(lora()) == "maximize"
    assert direction_of(lora("evaluation.primary_metric=forgetting")) == "minimize"
    assert direction_of(lora("optuna.direction=minimize")) == "minimize"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run 'lora' has no optuna.search_space, so there is nothing to search; for example"),
        (
            ["lr={type: uniform, low: 0.1, high: 1}", "learning_rate={type: uniform, low: 0.1, high: 1}"],
            "unknown key in optuna.search_space 'lr'; did you mean",
        ),
        (["name={type: categorical, choices: [a]}"], "may mean"),
        (
            [
                "learning_rate={type: uniform, low: 0.1, high: 1}",
                "training_learning_rate={type: uniform, low: 1, high: 2}",
            ],
            "training_learning_rate and learning_rate both mean training.learning_rate: delete one of them",
        ),
        (
            ["dataset_name={type: categorical, choices: [a, b]}"],
            "optuna.search_space.dataset_name means dataset.name, which a search sets itself",
        ),
        (
            ["learning_rate={type: uniform, low: -1, high: 1}"],
            "optuna.search_space.learning_rate reaches what no run takes: key 'training.learning_rate' of run",
        ),
        (["epochs={type: uniform, low: 1.5, high: 8}"], "found 1.5, expected a whole number"),
        (["epochs={type: categorical, choices: [4, many]}"], 'found "many", expected a whole number'),
        (["lr_scheduler={type: categorical, choices: [linear, liner]}"], "'liner'; did you mean 'linear'"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        searched_keys(lora(*(f"optuna.search_space.{word}" for word in words)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
