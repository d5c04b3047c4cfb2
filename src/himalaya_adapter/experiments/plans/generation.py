"""From a plan to run configs. The origin of every value is given: a field, ``settings``, a range, or a default."""

import re
from collections import Counter
from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

from peft import PeftType

from himalaya_adapter.documents import read_document
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.keys import OPTIONS, flattened, put
from himalaya_adapter.experiments.plans.plan import Design, Plan, PlannedRun
from himalaya_adapter.experiments.plans.ranges import key_by_name, read_range
from himalaya_adapter.experiments.plans.run_files import run_of
from himalaya_adapter.experiments.search_config import SearchRange
from himalaya_adapter.registry import METHODS, method_row

DEFAULTS = CONF / "plan_defaults.yaml"
DEFAULT = "default"
DESIGN = "experimental_design"
SETTINGS, SEARCH = f"{DESIGN}.settings", f"{DESIGN}.hyperparameters_to_search"
TYPE, EWC = "model.adapter.type", "model.adapter.ewc_lambda"


class Value(NamedTuple):
    """A value of a run config, and where it comes from."""

    value: Any
    origin: str


Values = dict[str, Value]  # by the keys of a run config
Ranges = Mapping[str, tuple[str, SearchRange]]  # by the names that the plan has for them: the key, and its values


def generate_configs(plan: Plan, *, strict: bool = False) -> list[Values]:
    """One valid run config for every run of a plan; the same plan gives the same ones.

    Args:
        plan: The plan.
        strict: Refuse a value that the plan does not give.

    Raises:
        HimalayaError: What in the plan cannot be read, by its field; with ``strict`` the keys that it leaves open.
    """
    ranges = {}
    for name, value in plan.experimental_design.hyperparameters_to_search.items():
        key = key_by_name(name, SEARCH)
        ranges[name] = key, read_range(value, key, f"{SEARCH}.{name}")
    configs = [_config(values, ranges, strict) for values in planned_values(plan)]
    used = {one.origin for config in configs for one in config.values()}
    for name, (key, _) in ranges.items():
        if f"{SEARCH}.{name}" not in used:
            raise HimalayaError(f"{SEARCH}.{name} means {key}, which no run of the plan has: delete it")
    return configs


def content_of(values: Values) -> dict[str, Any]:
    """The content of a run config with these values."""
    content: dict[str, Any] = {}
    for key, one in values.items():
        put(content, key, one.value)
    return content


def planned_values(plan: Plan) -> list[Values]:
    """What a plan's fields and settings say of each of its runs, in its order.

    Raises:
        HimalayaError: An unknown method, a setting that no run has, or two runs of one name.
    """
    design, runs = plan.experimental_design, plan.experiment_runs
    if runs is None:
        planned = [_values(design, DESIGN, run) for run in _implied_runs(design)]
    else:
        planned = [_values(design, f"experiment_runs[{number}]", run) for number, run in enumerate(runs)]
    for key in flattened(design.settings):
        if not any(key in values for values in planned):
            raise HimalayaError(f"{SETTINGS}: no run of the plan has {key}: delete it")
    # Two names that differ only in case are one file on some machines.
    for run_id, count in Counter(str(values["run_id"].value).casefold() for values in planned).items():
        if count > 1:
            raise HimalayaError(f"{count} runs have the run_id '{run_id}': give each its own in experiment_runs")
    return planned


def _implied_runs(design: Design) -> list[PlannedRun]:
    """Every method on every model and dataset, named as the source names its runs."""
    runs = []
    for method, model, dataset in product(design.methods(), design.models_to_use, design.datasets_to_use):
        safe = (re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-") for name in (model, dataset))
        runs.append(PlannedRun("-".join([method, "iter1", *safe]), method, model, dataset))
    return runs


def _values(design: Design, where: str, run: PlannedRun) -> Values:
    methods, models, datasets = design.methods(), design.models_to_use, design.datasets_to_use
    dataset = run.dataset or (datasets[0] if len(datasets) == 1 else "")
    wanted = (("method", run.method, methods), ("model", run.model, models), ("dataset", dataset, datasets))
    for field, name, known in wanted:
        if name not in known:
            raise unknown_name(f"{where}.{field}", name, known)
    name = re.split(r"[^\w-]", methods[run.method], maxsplit=1)[0]
    fields = {
        "run_id": run.run_id,
        "method": run.method.partition("-")[0],
        "method_name": name,
        "model.backbone.name": run.model,
        TYPE: name.upper(),
        "dataset.name": dataset,
    }
    values = {key: Value(value, where) for key, value in fields.items()}
    shared = {key: Value(value, SETTINGS) for key, value in flattened(design.settings).items()}
    own = {key: Value(value, f"{where}.settings") for key, value in flattened(run.settings).items()}
    method = str((values | shared | own)[TYPE].value).upper()
    if method not in PeftType.__members__:
        raise unknown_name(f"method in {where}", method, PeftType.__members__)
    return values | {key: one for key, one in shared.items() if _takes(method, key)} | own


def _takes(method: str, key: str) -> bool:
    """Whether a key may stand in a run of a method: it is nobody's, or the method's."""
    if key == EWC:
        return not method_row(method).protects_itself
    owners = [row.type for row in METHODS.values() if key in row.keys]
    # A run of HIMALAYA with a key that only HIMALAYA_STRICT has is learnt by that.
    return not owners or method in owners or (method == "HIMALAYA" and "HIMALAYA_STRICT" in owners)


def _config(planned: Values, ranges: Ranges, strict: bool) -> Values:
    """A run config: what the plan says, the defaults of the rest, and the ranges that the method has."""
    method, here = str(planned[TYPE].value).upper(), f"run '{planned['run_id'].value}'"
    defaults = read_document(DEFAULTS)
    open_keys = flattened(defaults["all"]) | flattened(defaults.get(method, {}))
    values = planned | {key: Value(value, DEFAULT) for key, value in open_keys.items() if key not in planned}
    left_open = [key for key in values if key not in planned]
    if strict and left_open:
        raise HimalayaError(f"{here}: the plan does not give {', '.join(left_open)}: give them in settings")
    for name, (key, one) in ranges.items():
        if _takes(method, key) and (key in values or not key.startswith(OPTIONS)):
            values[f"optuna.search_space.{name.replace('.', '_')}"] = Value(one.given(), f"{SEARCH}.{name}")
    run_of(content_of(values), here)
    return values
