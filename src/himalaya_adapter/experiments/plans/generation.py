"""From a plan to run configs. The origin of every value is given: a field, ``settings``, a range, or a default."""

import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from peft import PeftType

from himalaya_adapter.documents import read_document
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.keys import flattened, nested
from himalaya_adapter.experiments.plans.plan import Design, Plan, PlannedRun
from himalaya_adapter.experiments.plans.ranges import key_by_name, read_range, searchable_keys
from himalaya_adapter.experiments.plans.run_files import RunText, canonical, run_of
from himalaya_adapter.experiments.schema import REQUIRED, Key
from himalaya_adapter.experiments.search_config import SearchRange, searched_key
from himalaya_adapter.registry import METHODS, method_row

DEFAULTS = CONF / "plan_defaults.yaml"
DEFAULT, UNWRITTEN = "default", "default of the schema"
DESIGN = "experimental_design"
SETTINGS, SEARCH = f"{DESIGN}.settings", f"{DESIGN}.hyperparameters_to_search"
OPTIONS = "model.adapter.options."
EWC = "model.adapter.ewc_lambda"
NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Catalogue:
    """What the higher floors know by name.

    Args:
        streams: Names of the packaged streams.
        backbones: Names of the catalogue's backbones.
    """

    streams: tuple[str, ...]
    backbones: tuple[str, ...]


@dataclass(frozen=True)
class Fixed:
    """What a plan's fields and settings say of one run: values by keys, each with its origin."""

    run_id: str
    method: str
    values: Mapping[str, Any]
    origins: Mapping[str, str]


def generate_configs(plan: Plan, known: Catalogue, *, strict: bool = False) -> list[RunText]:
    """One valid run config for every run of a plan; the same plan gives the same texts.

    Args:
        plan: The plan.
        known: What the higher floors know by name.
        strict: Refuse a value that the plan does not give.

    Raises:
        HimalayaError: What in the plan cannot be read, by its field; with ``strict`` the keys that it leaves open.
    """
    design = plan.experimental_design
    ranges: dict[str, tuple[str, SearchRange]] = {}
    for name, value in design.hyperparameters_to_search.items():
        key = key_by_name(name, SEARCH)
        if key in ranges:
            raise HimalayaError(f"{SEARCH}: '{ranges[key][0]}' and '{name}' both stand for {key}")
        ranges[key] = name, read_range(value, key, f"{SEARCH}.{name}")
    configs = [_config(fixed, ranges, strict) for fixed in fixed_values(plan, known)]
    origins = {origin for config in configs for _, _, origin in config.origins}
    for key, (name, _) in ranges.items():
        if f"{SEARCH}.{name}" not in origins:
            raise HimalayaError(f"{SEARCH}.{name} means {key}, which no run of the plan has: delete it")
    return configs


def fixed_values(plan: Plan, known: Catalogue) -> list[Fixed]:
    """What a plan's fields and settings say of each of its runs, in its order.

    Raises:
        HimalayaError: A method, model or dataset that the plan does not list or that nobody knows.
    """
    design, runs = plan.experimental_design, plan.experiment_runs
    if runs is None:
        fixed = [_fixed(design, DESIGN, run, known) for run in _implied_runs(design)]
    else:
        fixed = [_fixed(design, f"experiment_runs[{number}]", run, known) for number, run in enumerate(runs)]
    for key in flattened(design.settings):
        if not any(key in run.values for run in fixed):
            raise HimalayaError(f"{SETTINGS}: no run of the plan has {key}: delete it")
    return fixed


def _implied_runs(design: Design) -> list[PlannedRun]:
    """Every method on every model and dataset, named as the source names its runs."""
    methods = ["proposed", *(f"comparative-{number + 1}" for number in range(len(design.comparative_methods)))]
    runs = []
    for method in methods:
        for model in design.models_to_use:
            for dataset in (*design.datasets_to_use,) or (None,):
                names = [model] if dataset is None else [model, dataset]
                safe = (re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-") for name in names)
                runs.append(PlannedRun("-".join([method, "iter1", *safe]), method, model, dataset))
    for run_id, count in Counter(run.run_id.casefold() for run in runs).items():
        if count > 1:
            raise HimalayaError(f"{DESIGN} gives {count} runs the run_id '{run_id}': name them in experiment_runs")
    return runs


def _fixed(design: Design, where: str, run: PlannedRun, known: Catalogue) -> Fixed:
    texts = {"proposed": design.proposed_method}
    texts |= {f"comparative-{place + 1}": text for place, text in enumerate(design.comparative_methods)}
    if run.method not in texts:
        raise unknown_name(f"{where}.method", run.method, texts)
    if run.model not in design.models_to_use:
        raise unknown_name(f"{where}.model", run.model, design.models_to_use)
    if run.dataset is not None and run.dataset not in design.datasets_to_use:
        raise unknown_name(f"{where}.dataset", run.dataset, design.datasets_to_use)
    only = design.datasets_to_use[0] if len(design.datasets_to_use) == 1 else None
    name = NAME.match(texts[run.method])
    fields = {
        "run_id": run.run_id,
        "method": run.method.partition("-")[0],
        "method_name": name[0] if name else run.method,
        "model.adapter.type": (name[0] if name else "").upper(),
        "model.backbone.name": run.model,
        "dataset.name": run.dataset or only,
    }
    settable = [*searchable_keys(), "optuna.direction", "optuna.n_trials", "optuna.stream"]
    values, origins = dict(fields), dict.fromkeys(fields, where)
    of_all, of_run = flattened(design.settings), flattened(run.settings)
    method = str({**values, **of_all, **of_run}["model.adapter.type"]).upper()
    for origin, given in ((SETTINGS, of_all), (f"{where}.settings", of_run)):
        for key, value in given.items():
            if key not in settable and not key.startswith(OPTIONS):
                raise unknown_name(f"key in {origin}", key, settable)
            if origin != SETTINGS or _takes(method, key):
                values[key], origins[key] = value, origin
    methods = [kind.value for kind in PeftType]
    if method not in methods:
        raise unknown_name(f"method in {where}", str(values["model.adapter.type"]), methods)
    stream, backbone = str(values["dataset.name"]), str(values["model.backbone.name"])
    if stream not in known.streams and not Path(stream).is_file():
        raise unknown_name(f"stream in {DESIGN}.datasets_to_use of {where}", stream, known.streams)
    if (
        backbone not in known.backbones
        and not re.fullmatch(r"[\w.-]+/[\w.-]+", backbone)
        and not Path(backbone).is_dir()
    ):
        raise unknown_name(f"backbone of {where}", backbone, known.backbones)
    return Fixed(run.run_id, method, values, origins)


def _takes(method: str, key: str) -> bool:
    """Whether a key may stand in a run of a method: it is nobody's, or the method's."""
    if key == EWC:
        return not method_row(method).protects_itself
    owners = [row.type for row in METHODS.values() if key in row.keys]
    # A run of HIMALAYA with a key that only HIMALAYA_STRICT has is learnt by that.
    return not owners or method in owners or (method == "HIMALAYA" and "HIMALAYA_STRICT" in owners)


def _config(fixed: Fixed, ranges: Mapping[str, tuple[str, SearchRange]], strict: bool) -> RunText:
    defaults = {**flattened(_defaults()["all"]), **flattened(_defaults().get(fixed.method, {}))}
    values = {key: value for key, value in {**defaults, **fixed.values}.items() if value is not None}
    origins = {key: fixed.origins.get(key, DEFAULT) for key in values}
    here = f"run '{fixed.run_id}'"
    run_of(nested(values), here)
    space: dict[str, Any] = {}
    for key, (name, one) in ranges.items():
        if not _takes(fixed.method, key) or (key.startswith(OPTIONS) and key not in values):
            continue
        for end in one.outermost():
            run_of(nested({**values, key: end}), f"{SEARCH}.{name} holds {end!r}, {here}")
        if origins.get(key, DEFAULT) == DEFAULT:
            values[key], origins[key] = one.nearest(values.get(key)), f"{SEARCH}.{name}"
        written = f"optuna.search_space.{_search_name(name, key, list(dict.fromkeys([*searchable_keys(), *values])))}"
        space[written] = {entry: value for entry, value in asdict(one).items() if value is not None}
        origins[written] = f"{SEARCH}.{name}"
    if not space:  # a plan that does not search gets no search
        values = {key: value for key, value in values.items() if not key.startswith("optuna.")}
    left_open = [key for key in values if origins[key] == DEFAULT]
    if strict and left_open:
        raise HimalayaError(f"{here}: the plan does not give {', '.join(left_open)}: give them in settings")
    values |= space
    rows = [(key, value, origins[key]) for key, value in values.items()]
    rows += [(key, one.default, UNWRITTEN) for key, one in searchable_keys().items() if _is_open(one, values)]
    return canonical(fixed.run_id, nested(values), rows)


def _is_open(key: Key, values: Mapping[str, Any]) -> bool:
    """Whether a run takes a key's value from the schema."""
    return key.path not in values and key.default not in (None, {}, REQUIRED)


def _search_name(name: str, key: str, keys: list[str]) -> str:
    """The name under which a search space holds a key: the plan's own if it is an end of the key's path, else the
    shortest end that stands for this key alone."""
    parts = key.split(".")
    ends = ["_".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
    for end in ([name] if name in ends else []) + ends:
        with contextlib.suppress(HimalayaError):  # several keys end like this
            if searched_key(end, keys) == key:
                return end
    return key


@cache
def _defaults() -> Mapping[str, Any]:
    return read_document(DEFAULTS)
