"""The ``optuna`` block: what a search could not do is refused with the reason, and every name means one key."""

import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.experiments.search_config import OptunaConfig, SearchRange, check_search, searched_key
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
    "values",
    [
        SearchRange("uniform", 0.0, 1.0),
        SearchRange("uniform", -1.0, 1.0, step=0.5),
        SearchRange("loguniform", 1e-5, 1e-2),
        SearchRange("int", 1, 8),
        SearchRange("int", 1, 8, log=True),
        SearchRange("int", 2, 8, step=2),
        SearchRange("categorical", choices=[4, "auto", None]),
    ],
)
def test_a_range_that_holds_values_passes(values: SearchRange) -> None:
    check_search(OptunaConfig(3, "maximize", {"learning_rate": values}), "a", KEYS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (SearchRange(), "type=None: expected one of loguniform, uniform, int, categorical"),
        (SearchRange("gaussian", 0, 1), "type=gaussian: expected one of"),
        (SearchRange("uniform", 1.0, 1.0), "low=1.0, high=1.0: expected two numbers, low below high"),
        (SearchRange("uniform", 2.0, 1.0), "low below high"),
        (SearchRange("uniform", 0.0), "low=0.0, high=None"),
        (SearchRange("uniform", 0.0, float("inf")), "expected two numbers"),
        (SearchRange("uniform", float("nan"), 1.0), "expected two numbers"),
        (SearchRange("uniform", 0.0, 1.0, choices=[1]), "choices belong to a categorical, not to uniform"),
        (SearchRange("uniform", 0.1, 1.0, log=True), "log belongs to an int; write type: loguniform"),
        (SearchRange("loguniform", 0.1, 1.0, log=False), "log belongs to an int; write type: uniform"),
        (SearchRange("uniform", 0.0, 1.0, step=0.0), "step=0.0: expected a number above 0"),
        (SearchRange("uniform", 0.0, 1.0, step=2.0), "at most high - low"),
        (SearchRange("loguniform", 0.0, 1.0), "low=0.0: expected a number above 0 on a logarithmic scale"),
        (SearchRange("loguniform", 0.1, 1.0, step=0.1), "no logarithmic scale"),
        (SearchRange("int", 1, 2.5), "expected whole numbers for an int"),
        (SearchRange("int", 0, 8, log=True), "low=0: expected a number above 0"),
        (SearchRange("categorical"), "a categorical needs choices"),
        (SearchRange("categorical", choices=[]), "a categorical needs choices"),
        (SearchRange("categorical", low=1, choices=[1]), "low belongs to a range of numbers"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused_by_name(values: SearchRange, message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        check_search(OptunaConfig(search_space={"learning_rate": values}), "a", KEYS)
    assert str(caught.value).startswith("optuna.search_space.learning_rate of run 'a': ")
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
        ("optuna.direction=up", "unknown optuna.direction of run 'demo-himalaya' 'up'; did you mean"),
        ("optuna.search_space.learning_rate={type: uniform, low: 3e-4, high: 1e-5}", "low=0.0003, high=1e-05"),
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
