"""One grammar of overrides for all commands: values are YAML, and commas separate several where a line takes them."""

import pytest

from himalaya_adapter.documents import document_text, parse_document
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.overrides import combinations, read_overrides


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a.b=1", 1),
        ("a.b=2e-4", 2e-4),
        ("a.b=", None),
        ("a.b=x=y", "x=y"),
        ("a.b=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("a.b={type: uniform, low: 1e-5}", {"type": "uniform", "low": 1e-5}),
        ("a.b='1'", "1"),
        ("a.b=2020-12-31", "2020-12-31"),
        ("a.b=1.5e3", 1500.0),
        ("a.b=.5", 0.5),
        ("a.b=True", True),
        ("a.b=no", "no"),
        ("a.b=007", "007"),
        ("a.b=12:30", "12:30"),
        ("a.b=1_000", "1_000"),
        ("a.b==", "="),
    ],
)
def test_a_value_is_yaml(word: str, value: object) -> None:
    found = read_overrides([word])
    assert {key: parse_document(text, key) for key, text in found.items()} == {"a.b": value}


@pytest.mark.parametrize("text", ["12e5", "1.5e3", "007", "no", "true", "12:30", "=", "2020-12-31", "~", "é\n"])
def test_a_text_is_read_as_it_was_written(text: str) -> None:
    assert parse_document(document_text({"a": text}), "a") == {"a": text}


@pytest.mark.parametrize("word", ["a", "=1", ".a=1", "a.=1", "a..b=1"])
def test_what_is_no_override_is_refused(word: str) -> None:
    with pytest.raises(HimalayaError, match="is not an override; write KEY=VALUE"):
        read_overrides([word])


def test_commas_outside_of_brackets_and_quotes_make_lines() -> None:
    assert combinations(["run=a,b", "seed=0, 1"]) == [
        *(["run=a", "seed=0"], ["run=a", "seed=1"]),
        *(["run=b", "seed=0"], ["run=b", "seed=1"]),
    ]
    assert combinations(["x=[1,2],[3]", "y='a,b'", "z=/m/x (2)"]) == [
        *(["x=[1,2]", "y='a,b'", "z=/m/x (2)"], ["x=[3]", "y='a,b'", "z=/m/x (2)"]),
    ]
    assert combinations(["x={a: 1, b: 2}", "y=[1"]) == [["x={a: 1, b: 2}", "y=[1"]]
