"""What a search may vary, and how a trial's values get into its run config."""

import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.experiments.validation import with_values
from himalaya_adapter.search.study import direction_of, hyper_parameters, values_of_trials

SOURCE = "run=proposed-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"


def lora(*words: str) -> RunConfig:
    return compose_run(["run=lora-package25", "run_id=lora", *words]).run


def test_the_search_space_of_the_source() -> None:
    assert hyper_parameters(compose_run([SOURCE]).run) == {
        "learning_rate": "training.learning_rate",
        "similarity_threshold_tau": "training.similarity_threshold_tau",
        "kd_tree_fanout": "model.kd_tree.fanout",
        "router_temperature_init": "model.adapter.router.temperature_init",
        "weight_decay": "training.weight_decay",
    }


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
    searched = lora(*words, "mode=trial", "training.report_to=tensorboard")
    run = with_values(searched, values_of_trials(searched))
    assert (run.dataset.name, run.dataset.num_tasks, run.dataset.languages) == ("mine.yaml", None, None)
    assert (run.evaluation.split, run.evaluation.rows, run.training.report_to) == ("validation", "all", "none")
    assert run.dataset.max_samples_per_task == 5
    assert not run.optuna.search_space
    assert values_of_trials(lora())["dataset.name"] == "validation_stream"


def test_the_direction_is_what_is_better_unless_it_is_given() -> None:
    assert direction_of(lora()) == "maximize"
    assert direction_of(lora("evaluation.primary_metric=forgetting")) == "minimize"
    assert direction_of(lora("optuna.direction=minimize")) == "minimize"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run 'lora' has no optuna.search_space, so there is nothing to search; for example"),
        (
            ["dataset_name={type: categorical, choices: [a, b]}"],
            "optuna.search_space.dataset_name means dataset.name, which a search sets itself",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        hyper_parameters(lora(*(f"optuna.search_space.{word}" for word in words)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
