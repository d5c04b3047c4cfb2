"""The source's own run configs run as they are: every key of them has an effect or is refused, none is ignored."""

import copy
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from source_runs import HIMALAYA, SOURCES, SourceRun, leaves, read

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.method_options import adapter_options, method_of
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.methods.construction import run_method
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig
from himalaya_adapter.registry import METHODS

NAME = HIMALAYA.name
SOURCE = read(NAME)
# Keys that a plain run writes down and does not act on: they are for a search and for comparisons.
WRITTEN_DOWN = ("method", "evaluation.primary_metric", "optuna.")
every_source = pytest.mark.parametrize("source", SOURCES, ids=[source.method for source in SOURCES])


def every_key(kind: str) -> pytest.MarkDecorator:
    """All ``options``, ``values`` or ``refused`` keys of all sources."""
    cases = [(source, path) for source in SOURCES for path in getattr(source, kind)]
    return pytest.mark.parametrize(("source", "path"), cases, ids=[f"{one.method}-{path}" for one, path in cases])


@functools.cache
def packaged_options(name: str) -> dict[str, Any]:
    """The method's options in the run as it is packaged."""
    return run_method(compose_run([f"run={name}"]).run).to_dict()


@every_source
def test_the_file_is_the_sources_byte_for_byte(source: SourceRun) -> None:
    assert hashlib.sha256((CONF / "run" / f"{source.name}.yaml").read_bytes()).hexdigest() == source.sha256


@every_source
def test_every_key_is_looked_at_below(source: SourceRun) -> None:
    assert sorted(leaves(read(source.name))) == sorted([*source.options, *source.values, *source.refused])
    keys = METHODS[source.method]
    assert keys.options.keys() == source.options.keys()
    assert keys.fixed.keys() < source.refused.keys()


@every_key("options")
def test_a_key_sets_its_option_and_no_other(source: SourceRun, path: str, tmp_path: Path) -> None:
    before = packaged_options(source.name)
    run = source.changed(path, source.options[path], tmp_path)
    check_run(run)
    after = run_method(run).to_dict()
    option = METHODS[source.method].options[path]
    assert {name for name in before if before[name] != after[name]} == {option}
    assert after[option] == source.options[path]


@every_key("values")
def test_a_key_changes_the_run(source: SourceRun, path: str, tmp_path: Path) -> None:
    run = source.changed(path, source.values[path], tmp_path)
    check_run(run)
    value: Any = run
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == source.values[path]


@every_key("refused")
def test_a_key_with_one_right_value_is_refused_by_name(source: SourceRun, path: str, tmp_path: Path) -> None:
    value, message = source.refused[path]
    with pytest.raises(HimalayaError) as caught:
        check_run(source.changed(path, value, tmp_path))
    assert message.format(name=source.name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_run_is_the_method_as_the_source_sets_it() -> None:
    run = compose_run([f"run={NAME}"]).run
    check_run(run)
    assert run.training.learning_rate == 2e-4
    config = run_method(run)
    assert isinstance(config, HimalayaStrictConfig)
    for key, option in METHODS["HIMALAYA_STRICT"].options.items():
        assert getattr(config, option) == leaves(SOURCE)[key]


def test_a_run_with_a_key_that_only_the_letter_has_is_of_the_letter() -> None:
    def method(*words: str) -> str:
        return method_of(compose_run(["run=demo-himalaya", "model.adapter.type=himalaya", *words]).run)

    assert method() == method("model.kd_tree.fanout=4", "model.adapter.router.expected_active_atoms=2") == "HIMALAYA"
    search = "optuna.search_space={router_temperature_init: {type: uniform, low: 0.5, high: 2.0}}"
    only = ("router.hidden_params=4000", "router.temperature_init=1.0")
    words = (*(f"model.adapter.{one}" for one in only), "training.router_temperature_anneal=linear", search)
    assert {method(word) for word in words} == {"HIMALAYA_STRICT"}
    assert method("model.adapter.type=lora", search) == "LORA"


@pytest.mark.parametrize("path", [path for path in HIMALAYA.values if not path.startswith(WRITTEN_DOWN)])
def test_a_key_is_read_by_what_runs(path: str) -> None:
    """By its section and name, in the source code outside the schema: a key that nothing reads would be ignored."""
    package = CONF.parent
    files = [file for file in package.rglob("*.py") if file.parent.name != "experiments"]
    name = r"\.".join(path.split(".")[-2:])
    assert any(re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("path", [path for path in leaves(SOURCE) if "." in path])
def test_a_misspelt_key_is_refused(path: str, tmp_path: Path) -> None:
    content = copy.deepcopy(SOURCE)
    section = content
    *parents, last = path.split(".")
    for parent in parents:
        section = section[parent]
    section[f"{last}s_"] = section.pop(last)
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(HimalayaError, match=f"unknown key .*{path}s_'; did you mean '{path}'"):
        compose_run([f"run={file}"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.kd_tree.fanout=5", "fanout=5 is not one of 4, 8, 16 (the run sets it as model.kd_tree.fanout)"),
        ("training.similarity_threshold_tau=1.5", "(the run sets it as training.similarity_threshold_tau)"),
        ("model.adapter.elastic_dictionary.quantisation_bits=1", "quantisation_bits=1 is not one of 2, 3, 4"),
        ("model.adapter.core_dictionary.num_atoms=0", "(the run sets it as model.adapter.core_dictionary.num_atoms)"),
        ("model.adapter.router.temperature_init=1e30", "temperature_init=1e+30 must be above 0 and at most 100"),
        ("model.adapter.options.atom_step=1e30", "atom_step=1e+30 must be above 0 and at most 100"),
        ("model.adapter.router.temperature_init=0", "(the run sets it as model.adapter.router.temperature_init)"),
    ],
)
def test_what_the_method_refuses_names_the_key(word: str, message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        run_method(compose_run([f"run={NAME}", word]).run)
    assert message in str(caught.value)


def test_a_key_and_its_option_are_not_both_given() -> None:
    run = compose_run([f"run={NAME}", "model.adapter.options.core_atoms=24"]).run
    with pytest.raises(HimalayaError, match=r"num_atoms and model\.adapter\.options\.core_atoms of run .* same thing"):
        check_run(run)


def test_options_that_have_no_key_are_added() -> None:
    options = adapter_options(compose_run([f"run={NAME}", "model.adapter.options.growth_window=50"]).run)
    assert options["growth_window"] == 50
    assert options["core_atoms"] == 24


def test_the_seed_of_a_run_is_that_of_its_adapter_unless_it_has_its_own() -> None:
    assert run_method(compose_run([f"run={NAME}", "training.seed=7"]).run).seed == 7
    own = ["training.seed=7", "model.adapter.options.seed=3"]
    assert run_method(compose_run([f"run={NAME}", *own]).run).seed == 3


def test_a_file_of_the_users_overrides_nothing_by_absence(tmp_path: Path) -> None:
    """Without the keys, the method has its own defaults: nothing is set to null."""
    options = adapter_options(compose_run(["run=demo-himalaya"]).run)
    assert options == {}
