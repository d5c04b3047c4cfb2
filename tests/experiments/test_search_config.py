"""The ``optuna`` block: what a search could not do is refused with the reason, and every name means one key."""

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.experiments.keys import searched_key
from himalaya_adapter.experiments.search_config import SearchRange
from himalaya_adapter.experiments.validation import check_run

RUN = "run=demo-himalaya"
KEYS = [
    "training.learning_rate",
    "model.kd_tree.fanout",
    "model.backbone.name",
    "dataset.name",
    "model.learning_rate2",
]


@pytest.mark.parametrize(
    ("values", "distribution"),
    [
        (SearchRange("uniform", 0.5, 1.0), FloatDistribution(0.5, 1.0)),
        (SearchRange("uniform", -1.0, 1.0, step=0.5), FloatDistribution(-1.0, 1.0, step=0.5)),
        (SearchRange("loguniform", 1e-5, 1.0), FloatDistribution(1e-5, 1.0, log=True)),
        (SearchRange("int", 1, 8), IntDistribution(1, 8)),
        (SearchRange("int", 1, 8, log=True), IntDistribution(1, 8, log=True)),
        (SearchRange("int", 2, 8, step=2), IntDistribution(2, 8, step=2)),
        (SearchRange("categorical", choices=["a", [1], None]), CategoricalDistribution(['"a"', "[1]", "null"])),
    ],
)
def test_each_type_is_the_distribution_that_it_says(values: SearchRange, distribution: Any) -> None:
    assert values.distribution() == distribution
    if values.choices is not None:
        assert [values.value(kept) for kept in distribution.choices] == values.choices


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{type: uniform, low: 2, high: 1}", "`low <= high` must hold, but got (low=2.0, high=1.0)"),
        ("{type: uniform, low: 0}", "'uniform' takes low and high, perhaps step; here is type, low"),
        ("{type: uniform, low: 0, high: 1, choices: [1]}", "'uniform' takes low and high, perhaps step; here is"),
        ("{type: uniform, low: 0, high: 1, step: 0}", "`step > 0` must hold"),
        ("{type: loguniform, low: 0.1, high: 1, log: false}", "'loguniform' takes low and high; here is"),
        ("{type: loguniform, low: 0, high: 1}", "`low > 0` must hold for `log=True`"),
        ("{type: loguniform, low: 0.1, high: 1, step: 0.1}", "`step` is not supported when `log` is true"),
        ("{type: int, low: 0, high: 8, log: true}", "`low >= 1` must hold for `log=True`"),
        ("{type: int, low: 0.5, high: 8}", "low=0.5 of an int: expected a whole number"),
        ("{type: int, low: 1, high: 8, step: 1.5}", "step=1.5 of an int: expected a whole number"),
        ("{type: categorical}", "The `choices` must contain one or more elements"),
        ("{type: categorical, low: 1, choices: [1]}", "'categorical' takes choices; here is"),
        ("{type: uniform, low: -1, high: 1}", "key 'training.learning_rate' of run 'himalaya': found -1.0, expected"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused_by_name(values: str, message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        check_run(compose_run([RUN, f"optuna.search_space.learning_rate={values}"]).run)
    assert str(caught.value).startswith("optuna.search_space.learning_rate of run 'himalaya': ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr={type: uniform, low: 0.1, high: 1}"], "unknown key in optuna.search_space 'lr'; did you mean"),
        (["name={type: categorical, choices: [a]}"], "may mean"),
        (
            [f"{name}={{type: uniform, low: 0.1, high: 1}}" for name in ("learning_rate", "training_learning_rate")],
            "has training.learning_rate twice, once as training_learning_rate",
        ),
        (["task_epochs={type: uniform, low: 1.5, high: 8}"], "found 1.5, expected a whole number"),
        (["task_epochs={type: categorical, choices: [4, many]}"], 'found "many", expected a whole number'),
        (["lr_scheduler={type: categorical, choices: [linear, liner]}"], 'found "liner", expected one of linear'),
    ],
)
def test_names_mean_one_key_each_and_every_value_is_possible(words: list[str], message: str) -> None:
    with pytest.raises(HimalayaError, match="optuna") as caught:
        check_run(compose_run([RUN, *(f"optuna.search_space.{word}" for word in words)]).run)
    assert message in str(caught.value)


def test_a_name_means_the_end_of_one_key() -> None:
    assert searched_key("learning_rate", KEYS) == "training.learning_rate"
    assert searched_key("training.learning_rate", KEYS) == "training.learning_rate"
    assert searched_key("kd_tree_fanout", KEYS) == searched_key("fanout", KEYS) == "model.kd_tree.fanout"
    with pytest.raises(HimalayaError, match=r"may mean model\.backbone\.name or dataset\.name: write more of the key"):
        searched_key("name", KEYS)
    with pytest.raises(HimalayaError, match=r"unknown key in optuna\.search_space 'rate'"):
        searched_key("rate", ["training.learnrate"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "optuna.n_trials=0",
            "key 'optuna.n_trials' of run 'demo-himalaya': found 0, expected a whole number of at least 1",
        ),
        ("optuna.direction=up", 'found "up", expected one of maximize, minimize, or null'),
        ("optuna.search_space.learning_rate.low=1", "key 'optuna.search_space.learning_rate.type' of run"),
        (
            "optuna.search_space.lora_alpha={type: int, low: 1, high: 8}",
            "unknown key in optuna.search_space 'lora_alpha'",
        ),
    ],
)
def test_the_block_of_a_run_is_checked(word: str, message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        check_run(compose_run([RUN, word]).run)
    assert message in str(caught.value)


def test_an_unknown_field_of_a_range_is_named() -> None:
    with pytest.raises(HimalayaError, match=r"did you mean 'optuna\.search_space\.learning_rate\.low'"):
        compose_run([RUN, "optuna.search_space.learning_rate.lo=1"])
