"""What a run config holds where the plan says nothing (``conf/plan_defaults.yaml``), and which keys a method has."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.key_table import run_keys
from himalaya_adapter.experiments.keys import flattened
from himalaya_adapter.experiments.search_config import SearchRange

DEFAULTS = CONF / "plan_defaults.yaml"
ALL = "all"
SPACE = "optuna.search_space"
# The fields of the plan say these of every run; nothing else does.
FACTS = (
    *("run_id", "method", "method_name", "model.adapter.type", "model.backbone.name", "dataset.name"),
    "dataset.tokenizer",
)


def default_values(method: str) -> dict[str, Any]:
    """The values of a method's run config, by keys; without those of its search space."""
    values = {**flattened(_file()[ALL]), **flattened(_file().get(method, {}))}
    return {key: value for key, value in values.items() if not key.startswith(SPACE)}


def own_ranges(method: str) -> dict[str, SearchRange]:
    """The ranges that a method adds to those of a plan, by their names in the search space."""
    space = _file().get(method, {}).get("optuna", {}).get("search_space", {})
    return {name: SearchRange(**entry) for name, entry in space.items()}


def method_keys(method: str) -> list[str]:
    """The keys that a plan may set or search in a run of a method, facts excepted: those that belong to no method
    and those that the method's defaults hold."""
    others = {key for name in _file() if name != ALL for key in flattened(_file()[name])} - flattened(
        _file()[ALL]
    ).keys()
    mine = default_values(method)
    keys = dict.fromkeys([*schema_keys(), *mine])
    return [key for key in keys if key not in FACTS and (key in mine or key not in others)]


def schema_keys() -> list[str]:
    """All keys of a run config that hold a value, those of the search space excepted."""
    return [key.path for key in run_keys().values() if not key.section and not key.path.startswith(SPACE)]


@cache
def _file() -> Mapping[str, Any]:
    return yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
