"""Names mean one key each, ranges are read as written, and every pattern of prose reads its example."""

import re
from typing import Any

import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.plans.key_names import key_by_name, search_name
from himalaya_adapter.experiments.plans.method_defaults import schema_keys
from himalaya_adapter.experiments.plans.prose import (
    METHOD_PATTERNS,
    SUMMARY_PATTERNS,
    Pattern,
    count,
    read_languages,
    read_prose,
    read_stream_name,
)
from himalaya_adapter.experiments.plans.ranges import centred, range_entry, read_range
from himalaya_adapter.experiments.plans.run_facts import file_safe
from himalaya_adapter.experiments.search_config import SearchRange


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("learning_rate", "training.learning_rate"),
        ("Learning-Rate", "training.learning_rate"),
        ("training.learning_rate", "training.learning_rate"),
        ("lr", "training.learning_rate"),
        ("tau_similarity_threshold", "training.similarity_threshold_tau"),
        ("τ", "training.similarity_threshold_tau"),
        ("adamw_weight_decay", "training.weight_decay"),
        ("kd_tree_fanout", "model.kd_tree.fanout"),
        ("router_temperature_init", "model.adapter.router.temperature_init"),
        ("initial router temperature init", None),
        ("batch_size", "training.batch_size"),
        ("num_core_atoms", "model.adapter.core_dictionary.num_atoms"),
        ("ewc_λ", "model.adapter.ewc_lambda"),
        ("sgd_weight_decay", None),
        ("dropout_rate", None),
        ("", None),
        ("___", None),
    ],
)
def test_a_name_means_one_key(name: str, key: str | None) -> None:
    if key is None:
        with pytest.raises(HimalayaError, match=re.escape(f"unknown key in settings '{name}'")):
            key_by_name(name, schema_keys(), "settings")
    else:
        assert key_by_name(name, schema_keys(), "settings") == key


@pytest.mark.parametrize("name", ["size", "steps", "quantisation_bits", "dictionary"])
def test_a_name_of_several_keys_is_refused_with_the_candidates(name: str) -> None:
    with pytest.raises(HimalayaError, match=rf"settings\.{name} may mean \S+ or \S+.*: write more of the key"):
        key_by_name(name, [*schema_keys(), "model.backbone.quantisation_bits"], "settings")


def test_every_key_is_meant_by_its_own_path_and_has_a_name_in_the_search_space() -> None:
    keys = schema_keys()
    for key in keys:
        assert key_by_name(key, keys, "settings") == key
        assert search_name("anything", key, keys)


@pytest.mark.parametrize(
    ("value", "key", "whole", "entry"),
    [
        ("1e-5-3e-4", "training.learning_rate", False, {"type": "loguniform", "low": 1e-5, "high": 3e-4}),
        ("1E-5 – 3E-5", "training.learning_rate", False, {"type": "loguniform", "low": 1e-5, "high": 3e-5}),
        ("[1e-2, 1.0]", "x", False, {"type": "categorical", "choices": [1e-2, 1.0]}),
        ("0.75-0.9", "x.tau", False, {"type": "uniform", "low": 0.75, "high": 0.9}),
        ("0-0.01", "training.weight_decay", False, {"type": "uniform", "low": 0.0, "high": 0.01}),
        ("0-0.1", "training.learning_rate", False, {"type": "uniform", "low": 0.0, "high": 0.1}),
        ("-1--0.5", "x", False, {"type": "uniform", "low": -1.0, "high": -0.5}),
        ("0.2 to 0.5", "model.adapter.ewc_lambda", False, {"type": "loguniform", "low": 0.2, "high": 0.5}),
        ("0.1..1", "x", False, {"type": "loguniform", "low": 0.1, "high": 1.0}),
        ("2-8", "x", True, {"type": "int", "low": 2.0, "high": 8.0}),
        ("1-64", "x", True, {"type": "int", "low": 1.0, "high": 64.0, "log": True}),
        ("4,8,16", "x", True, {"type": "categorical", "choices": [4, 8, 16]}),
        ("linear, cosine", "x", False, {"type": "categorical", "choices": ["linear", "cosine"]}),
        ([4, "2e-4"], "x", False, {"type": "categorical", "choices": [4, 2e-4]}),
        (
            {"type": "int", "low": "1", "high": 9, "step": 2},
            "x",
            False,
            {"type": "int", "low": 1, "high": 9, "step": 2},
        ),
    ],
)
def test_a_range_is_read_as_written(value: Any, key: str, whole: bool, entry: dict[str, Any]) -> None:
    assert range_entry(read_range(value, key, whole=whole, where="lr")) == entry


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast", "lr is 'fast'; expected low-high"),
        ("1e-5", "a single value belongs to settings"),
        (0.1, "lr is 0.1; expected low-high"),
        (None, "lr is None; expected"),
        ("", "lr is ''; expected"),
        ("1-2-3", "lr is '1-2-3'; expected low-high"),
        ("1e400-2", "low=inf"),
        ("2-1", "lr is '2-1': low=2.0, high=1.0: expected two numbers, low below high"),
        ([], "lr is []: a categorical needs choices"),
        ({"type": "uniform"}, "low=None, high=None: expected two numbers"),
        ({"type": "gaussian", "low": 0, "high": 1}, "type=gaussian: expected one of loguniform"),
        ({"type": "uniform", "lo": 0}, "unknown key in lr 'lo'; did you mean 'low'"),
        ({"type": "uniform", "low": "a", "high": 1}, "lr.low is 'a'; expected a number"),
        ({"type": "int", "low": 1, "high": 4, "log": "yes"}, "lr.log is 'yes'; expected true or false"),
        ({"type": "categorical", "choices": "4"}, "lr.choices is '4'; expected a list"),
        ({"type": "loguniform", "low": 0, "high": 1}, "low=0: expected a number above 0 on a logarithmic scale"),
    ],
)
def test_a_range_that_cannot_be_read_is_refused(value: Any, message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        read_range(value, "training.warmup_steps", whole=False, where="lr")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "value", "expected"),
    [
        (SearchRange("loguniform", 1e-5, 1e-3), 1e-2, 1e-4),
        (SearchRange("loguniform", 1e-5, 1e-3), 2e-4, 2e-4),
        (SearchRange("uniform", 0.0, 1.0), None, 0.5),
        (SearchRange("uniform", 0.12341, 0.12342), 3, 0.123415),
        (SearchRange("int", 1, 4), 9, 2),
        (SearchRange("categorical", choices=[4, 8, 16]), 8, 8),
        (SearchRange("categorical", choices=[2, 4, 16, 32]), 8, 4),
    ],
)
def test_a_default_outside_the_range_becomes_its_centre(values: SearchRange, value: Any, expected: Any) -> None:
    assert centred(values, value) == expected


@pytest.mark.parametrize("pattern", [*SUMMARY_PATTERNS, *METHOD_PATTERNS], ids=lambda pattern: pattern.key)
def test_a_pattern_reads_its_example(pattern: Pattern) -> None:
    assert pattern.key in schema_keys()
    assert read_prose(f"First, {pattern.example}, then.", (pattern,), {}, "x") == {pattern.key: pattern.value}
    assert read_prose(pattern.example, (pattern,), {pattern.key: 3}, "x") == {}
    assert read_prose("50 k per task, 7 B parameters and 4-bit weights.", (pattern,), {}, "x") == {}


def test_words_of_prose() -> None:
    assert [count(text) for text in ("50 k", "2.5k", "1,500", "7", "three")] == [50000, 2500, 1500, 7, 3]
    assert read_stream_name('the “Long Stream” collection and a "short" one') == "Long Stream"
    assert read_stream_name("a stream of tasks") is None
    assert read_languages("We polish EN→DE and then Finnish; covering 3 languages.") == ["en", "de", "fi"]
    assert read_languages("No language at all; 10 languages.") is None


def test_a_models_text_becomes_part_of_a_file_name_as_in_the_source() -> None:
    assert file_safe("Llama-2-7B-HF (4-bit QLoRA, 7 B parameters)") == "Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"
    assert file_safe("../..\\a b") == "..-..-a-b"
