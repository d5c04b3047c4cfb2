"""From a plan to run configs by rules.

Every value comes from the first of these that gives it: the run's ``settings``, the design's ``settings``, the other
fields, the patterns of `prose`, ``conf/plan_defaults.yaml``.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.key_table import key_named, run_keys
from himalaya_adapter.experiments.plans.key_names import key_by_name, keys_by_name, search_name
from himalaya_adapter.experiments.plans.method_defaults import (
    SPACE,
    default_values,
    method_keys,
    own_ranges,
    schema_keys,
)
from himalaya_adapter.experiments.plans.plan import Plan
from himalaya_adapter.experiments.plans.plan_words import Catalogue, read_hardware, read_metrics
from himalaya_adapter.experiments.plans.prose import METHOD_PATTERNS, SUMMARY_PATTERNS, read_languages, read_prose
from himalaya_adapter.experiments.plans.ranges import centred, range_entry, range_values, read_range
from himalaya_adapter.experiments.plans.run_facts import DESIGN, RunFacts, run_facts
from himalaya_adapter.experiments.plans.run_files import RunText, canonical, closed, nested_text, run_of_text
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.search_config import SearchRange
from himalaya_adapter.experiments.validation import check_run

SETTINGS, SEARCH = f"{DESIGN}.settings", f"{DESIGN}.hyperparameters_to_search"
OPTIONS = "model.adapter.options"
Held = TypeVar("Held")
Ranges = Mapping[str, tuple[str, SearchRange]]  # key -> the plan's name for it, its range


def generate_configs(plan: Plan, known: Catalogue) -> list[RunText]:
    """One valid run config for every run of a plan; the same plan gives the same texts.

    Raises:
        HimalayaError: What in the plan cannot be read, by its field.
    """
    try:
        runs = run_facts(plan, known)
        own = [_own_settings(facts) for facts in runs]
        keys = [[*dict.fromkeys([*method_keys(one.method.type), *mine])] for one, mine in zip(runs, own, strict=True)]
        every = list(dict.fromkeys(key for held in keys for key in held))
        settings = {key: plan.settings[name] for key, name in _keys(plan.settings, every, SETTINGS).items()}
        values = {key: value for one in runs for key, value in default_values(one.method.type).items()}
        ranges = _ranges(plan, every, {key: value for one in (values, *own) for key, value in one.items()})
        return [
            _config(plan, facts, held, {**_held(settings, held), **mine}, _held(ranges, held))
            for facts, held, mine in zip(runs, keys, own, strict=True)
        ]
    except HimalayaError as error:
        raise HimalayaError(f"plan {plan.path}: {error}") from error


def _own_settings(facts: RunFacts) -> dict[str, Any]:
    """The settings of one run; they may name any option of its method (``model.adapter.options.NAME``)."""
    given, options = facts.run.settings, [name for name in facts.run.settings if name.startswith(f"{OPTIONS}.")]
    keys = _keys(given, [*method_keys(facts.method.type), *options], f"{facts.where}.settings")
    return {key: given[name] for key, name in keys.items()}


def _ranges(plan: Plan, keys: list[str], values: Mapping[str, Any]) -> Ranges:
    """The plan's ranges; what a key's range holds follows from the schema, or for an option from a value of it."""
    given = plan.hyperparameters_to_search
    ranges = {}
    for key, name in _keys(given, keys, SEARCH).items():
        known = run_keys().get(key)
        whole = known.expected.startswith("a whole number") if known else type(values.get(key)) is int
        ranges[key] = name, read_range(given[name], key, whole=whole, where=f"{SEARCH}.{name}")
    return ranges


def _keys(names: Iterable[str], keys: list[str], where: str) -> dict[str, str]:
    """The keys that names stand for, each with its name."""
    found: dict[str, str] = {}
    for name in names:
        key = _key(name, keys, where)
        if key in found:
            raise HimalayaError(f"{where}: '{found[key]}' and '{name}' both stand for {key}")
        found[key] = name
    return found


def _key(name: str, keys: list[str], where: str) -> str:
    """The key of a name among those of the plan's runs; a key of another method is told from an unknown one."""
    elsewhere = keys_by_name(name, [key for key in schema_keys() if key not in keys])
    if len(elsewhere) == 1 and not keys_by_name(name, keys):
        raise HimalayaError(f"{where}.{name} stands for {elsewhere[0]}, which no run here takes from it")
    return key_by_name(name, keys, where)


def _held(values: Mapping[str, Held], keys: list[str]) -> dict[str, Held]:
    return {key: value for key, value in values.items() if key in keys}


def _config(plan: Plan, facts: RunFacts, keys: list[str], told: Mapping[str, Any], ranges: Ranges) -> RunText:
    """One run's config.

    Args:
        plan: The plan.
        facts: The run.
        keys: The keys that the run takes from the plan.
        told: Values of its settings, and of the plan's.
        ranges: The plan's ranges of its keys.
    """
    said, direction = _said(plan, facts, keys, told)
    defaults = {key: value for key, value in default_values(facts.method.type).items() if value is not None}
    values = {**defaults, "optuna.direction": direction, **said}
    if ranges:  # a plan that searches is joined by what the method adds; one that does not gets no search
        mine = {key_by_name(name, keys, SEARCH): (name, one) for name, one in own_ranges(facts.method.type).items()}
        ranges = {**ranges, **{key: named for key, named in mine.items() if key not in ranges}}
    else:
        values = {key: value for key, value in values.items() if not key.startswith("optuna.")}
    name = facts.run.run_id
    try:
        config = OmegaConf.structured(run_of_text(closed(RunText(name, nested_text(values)))))
        for key, (plan_name, one) in ranges.items():
            _check_range(config, key, one, f"{SEARCH}.{plan_name}")
        values |= {key: centred(one, values.get(key)) for key, (_, one) in ranges.items() if key not in said}
        return canonical(RunText(name, nested_text({**values, **_space(ranges, values)})))[0]
    except HimalayaError as error:
        raise HimalayaError(f"run '{name}': {error}") from error


def _space(ranges: Ranges, values: Mapping[str, Any]) -> dict[str, Any]:
    """The search space, by keys."""
    keys = [*schema_keys(), *(key for key in values if key.startswith(f"{OPTIONS}."))]
    return {
        f"{SPACE}.{search_name(name, key, keys)}.{entry}": value
        for key, (name, one) in ranges.items()
        for entry, value in range_entry(one).items()
    }


def _said(plan: Plan, facts: RunFacts, keys: list[str], told: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What the plan says of a run, by keys, and the direction of its search."""
    metrics, direction = read_metrics(plan)
    fields = {**facts.values, **facts.method.values, **metrics, **read_hardware(plan.gpu, plan.vram)}
    patterns = tuple(pattern for pattern in METHOD_PATTERNS if pattern.key in keys)
    given = {**fields, **told}
    prose = {
        **read_prose(plan.experiment_summary, SUMMARY_PATTERNS, given, f"{DESIGN}.experiment_summary"),
        **read_prose(facts.method_text, patterns, given, facts.method_field),
    }
    languages = read_languages(plan.experiment_summary)
    if languages:
        prose["dataset.languages"] = languages
    if "evaluation.secondary_metric" not in given:
        prose.pop("evaluation.cpu_latency_device", None)  # the device of that metric
    return {**prose, **fields, **told}, direction


def _check_range(run: DictConfig, key: str, values: SearchRange, where: str) -> None:
    """Check that the run with each choice or end of a range is a valid run."""
    before = OmegaConf.select(run, key)
    for value in range_values(values):
        try:
            OmegaConf.update(run, key, value, force_add=True)
            check_run(cast(RunConfig, OmegaConf.to_object(run)))
        except OmegaConfBaseException as error:
            expected = key_named(key)
            reason = f"expected {expected.expected}" if expected else str(error).splitlines()[0]
            raise HimalayaError(f"{where} holds {value!r}: {key}: {reason}") from error
        except HimalayaError as error:
            raise HimalayaError(f"{where} holds {value!r}: {error}") from error
    OmegaConf.update(run, key, before)
