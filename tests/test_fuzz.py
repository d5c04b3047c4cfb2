"""Mutated run configs, overrides, plans and streams: each is accepted, or refused in one line.

``make fuzz`` runs ten thousand of them.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import write_stream

from himalaya_adapter.errors import HimalayaError, told
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.overrides import combinations
from himalaya_adapter.experiments.plans import generate_configs, read_plan, read_runs
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.streams.catalogue import read_definition

EXAMPLES = int(os.environ.get("HIMALAYA_FUZZ", "30"))  # of each test
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HIMALAYA_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
RUN = (CONF / "run" / "demo-lora-ewc.yaml").read_text(encoding="utf-8")
PLAN = (CONF / "plans" / "himalaya.yaml").read_text(encoding="utf-8")
KEYS = (
    "training.batch_size",
    "model.adapter.options",
    "optuna.search_space.learning_rate",
    "dataset",
    "run_id",
    "x.y",
)
# What has broken readers of YAML, or ours.
FRAGMENTS = (
    *("2020-13-45", "!!int x", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a, b}", "!!omap [a: b]", "!!null x"),
    *("&a [*a]", "&a {b: *a}", "<<: 3", "<<: [a]", "? [a]\n: b", "{", "[", "'", '"', "|", ">", "- ", ": ", "#", "%"),
    *(
        "*a",
        "!x y",
        "!!python/object:os.system x",
        "${oc.env:HOME}",
        "${.x}",
        "\t",
        "\x00",
        "\x07",
        "\ud800",
        "é",
        "\u2028",
    ),
    *("0x", "0b1", "1_0", "1:30", ".inf", "-.inf", ".nan", "1e400", "9" * 400, "~", "null", "yes", "[]", "{}", "???"),
    *("[" * 60, "{a: " * 60, "a: " * 30, "---\n", "...\n", "a" * 300, "../x", "/", ".", "", " ", "\n", "\r", "\\"),
)
LEAVES = st.one_of(
    st.sampled_from(FRAGMENTS),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=3),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LEAVES, inner, max_size=3), max_leaves=6
)


@st.composite
def mutated_texts(draw: st.DrawFn, text: str) -> str:
    """A text with fragments put in, and pieces cut out or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        # Before a line's value, where a fragment does most, or anywhere.
        colons = [place + 2 for place, sign in enumerate(text) if text[place : place + 2] == ": "]
        start = draw(st.sampled_from(colons) if colons and draw(st.booleans()) else st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 20)))
        text = text[:start] + draw(st.sampled_from((*FRAGMENTS, text[start:end] * 2))) + text[end:]
    return text


@st.composite
def mutated_contents(draw: st.DrawFn, content: Any) -> Any:
    """Nested keys and lists in which one value, key or entry is another, is missing, or is new."""
    if draw(st.integers(0, 5)) == 0 or not isinstance(content, dict | list) or not content:
        return draw(VALUES)
    if isinstance(content, list):
        place = draw(st.integers(0, len(content) - 1))
        return [*content[:place], draw(mutated_contents(content[place])), *content[place + 1 :]]
    changed, key = dict(content), draw(st.sampled_from(sorted(content, key=str)))
    kind = draw(st.integers(0, 7))
    if kind == 0:
        del changed[key]
    elif kind == 1:
        changed[draw(LEAVES)] = draw(VALUES)
    else:
        changed[key] = draw(mutated_contents(content[key]))
    return changed


def documents(text: str) -> st.SearchStrategy[str]:
    content = yaml.safe_load(text)
    written = mutated_contents(content).map(lambda one: yaml.dump(one, allow_unicode=True))
    return mutated_texts(text) | written


def one_line(error: HimalayaError) -> None:
    line = told(error)
    assert line is not None
    assert len(line.splitlines()) == 1
    assert len(line) < 3000


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode(errors="surrogatepass"))
    return path


@fuzzed
@given(text=documents(RUN))
def test_a_run_config_is_accepted_or_refused_in_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.getbasetemp(), "run.yaml", text)
    for read in (lambda: check_run(compose_run([f"run={path}"]).run), lambda: read_runs(path)):
        try:
            read()
        except HimalayaError as error:
            one_line(error)


WORDS = st.builds(
    lambda key, value: f"{key}={value}",
    st.sampled_from(KEYS) | st.text(max_size=6),
    st.sampled_from(FRAGMENTS) | VALUES.map(lambda value: yaml.dump(value, default_flow_style=True)),
) | st.text(max_size=10)


@fuzzed
@given(words=st.lists(WORDS, max_size=4))
def test_overrides_are_accepted_or_refused_in_one_line(words: list[str]) -> None:
    try:
        lines = combinations(["run=demo-lora", *words])
        assert lines, "a line stands for itself at least"
        check_run(compose_run(lines[0]).run)
    except HimalayaError as error:
        one_line(error)


@fuzzed
@given(text=documents(PLAN))
def test_a_plan_is_accepted_or_refused_in_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.getbasetemp(), "plan.yaml", text)
    try:
        configs = generate_configs(read_plan(str(path))[1])
        assert configs
    except HimalayaError as error:
        one_line(error)


@fuzzed
@given(data=st.data())
def test_a_stream_is_accepted_or_refused_in_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "stream"
    original = write_stream(folder).read_text(encoding="utf-8")
    path = written(folder, "mutated.yaml", data.draw(documents(original)))
    try:
        read_definition(str(path)).used_archives()
    except HimalayaError as error:
        one_line(error)
