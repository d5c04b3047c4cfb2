"""Names of a search mean one key each, and ranges are read as written."""

import re
from typing import Any

import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.plans.ranges import key_by_name, read_range
from himalaya_adapter.experiments.search_config import SearchRange


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("learning_rate", "training.learning_rate"),
        ("training.learning_rate", "training.learning_rate"),
        ("tau_similarity_threshold", "training.similarity_threshold_tau"),
        ("adamw_weight_decay", "training.weight_decay"),
        ("kd_tree_fanout", "model.kd_tree.fanout"),
        ("router_temperature_init", "model.adapter.router.temperature_init"),
        ("model.adapter.options.r", "model.adapter.options.r"),
        ("batch_size", "training.batch_size"),
        ("quantisation_bits", None),
        ("sgd_weight_decay", None),
        ("dropout_rate", None),
        ("___", None),
    ],
)
def test_a_name_means_one_key(name: str, key: str | None) -> None:
    if key is None:
        with pytest.raises(HimalayaError, match=re.escape(f"search{'.' if name == 'quantisation_bits' else ''}")):
            key_by_name(name, "search")
    else:
        assert key_by_name(name, "search") == key


@pytest.mark.parametrize(
    ("value", "key", "expected"),
    [
        ("1e-5-3e-4", "training.learning_rate", SearchRange("loguniform", 1e-5, 3e-4)),
        ("0.75-0.9", "training.similarity_threshold_tau", SearchRange("uniform", 0.75, 0.9)),
        ("0-0.01", "training.weight_decay", SearchRange("uniform", 0.0, 0.01)),
        ("-1 to 1", "training.weight_decay", SearchRange("uniform", -1.0, 1.0)),
        ("0.5..2.0", "model.adapter.router.temperature_init", SearchRange("uniform", 0.5, 2.0)),
        ("2–8", "training.batch_size", SearchRange("int", 2.0, 8.0)),
        ("2-64", "training.batch_size", SearchRange("int", 2.0, 64.0, log=True)),
        ("4,8,16", "model.kd_tree.fanout", SearchRange("categorical", choices=[4, 8, 16])),
        (["linear", "cosine"], "training.lr_scheduler", SearchRange("categorical", choices=["linear", "cosine"])),
        ({"type": "uniform", "low": 7e-1, "high": 0.9}, "x", SearchRange("uniform", 0.7, 0.9)),
    ],
)
def test_a_range_is_read_as_it_is_written(value: Any, key: str, expected: SearchRange) -> None:
    assert read_range(value, key, "here") == expected


@pytest.mark.parametrize("value", ["fast", 3, None, "1-", {"type": "gaussian"}, {"low": True}, "[1,2", "a,{"])
def test_what_is_no_range_is_refused(value: Any) -> None:
    with pytest.raises(HimalayaError, match="here"):
        read_range(value, "training.learning_rate", "here")
