"""The part of a run config that says what a search would vary. A plain run checks it and does not search."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.schema import Count, Number, Section, Switch

TYPES = ("loguniform", "uniform", "int", "categorical")


@dataclass
class SearchRange(Section):
    """The values that a search may give to one key."""

    type: Literal["loguniform", "uniform", "int", "categorical"] | None = None
    """``uniform``, ``loguniform``, ``int`` or ``categorical``."""
    low: Number | None = None
    """Smallest value of a number."""
    high: Number | None = None
    """Largest value of a number."""
    log: Switch | None = None
    """Whether ``int`` is drawn on a logarithmic scale."""
    step: Number | None = None
    """Distance between two values of ``int`` or ``uniform``."""
    choices: list[Any] | None = None
    """The values of ``categorical``."""

    def outermost(self) -> list[Any]:
        """The values that must all be possible: the ends of a range, or every choice."""
        if self.choices is not None:
            return self.choices
        return [int(end) if self.type == "int" else end for end in (self.low, self.high) if end is not None]

    def nearest(self, value: Any) -> Any:
        """``value`` if the range holds it, else its centre: of a logarithmic scale the geometric mean, of choices the
        middle one, the lower of two."""
        if self.choices is not None:
            return value if value in self.choices else self.choices[(len(self.choices) - 1) // 2]
        low, high = self.low or 0.0, self.high or 0.0
        if value is not None and low <= value <= high:
            return value
        centre = math.sqrt(low * high) if self.type == "loguniform" or self.log else (low + high) / 2
        rounded = float(f"{centre:.2g}")  # two digits are what a person would write
        centre = rounded if low <= rounded <= high else centre
        return round(centre) if self.type == "int" else centre


@dataclass
class OptunaConfig(Section):
    """A search."""

    n_trials: Count | None = None
    """Runs of the search, over all its processes and restarts."""
    direction: Literal["maximize", "minimize"] | None = None
    """``maximize`` or ``minimize``, of ``evaluation.primary_metric``; ``null`` is what is better."""
    stream: str = "validation_stream"
    """The stream that the trials learn, a packaged one or a YAML file; its validation items score them."""
    storage: str | None = None
    """URL of a database (``sqlite:///…``) that keeps the study; ``null`` keeps a file in its folder."""
    search_space: dict[str, SearchRange] = field(default_factory=dict)
    """Ranges by the name of the key that they vary."""


def check_search(search: OptunaConfig, run_id: str, keys: list[str]) -> None:
    """Check that a search could be made as it is written.

    Args:
        search: The run's ``optuna``.
        run_id: The run, for the message.
        keys: All keys of a run config.

    Raises:
        HimalayaError: A range that holds no or no finite values, an unknown type, a field that its type does not
            have, or a name that stands for no key or for several.
    """
    for name, values in search.search_space.items():
        searched_key(name, keys)
        problem = _problem(values)
        if problem:
            raise HimalayaError(f"optuna.search_space.{name} of run '{run_id}': {problem}")


def searched_key(name: str, keys: list[str], where: str = "optuna.search_space", others: Sequence[str] = ()) -> str:
    """The one key that a name stands for: its own path, or the end of it with ``_`` for dots.

    ``learning_rate`` is ``training.learning_rate``, ``kd_tree_fanout`` is ``model.kd_tree.fanout``.

    Args:
        name: As it is written.
        keys: All that there are.
        where: Where it is written, for the message.
        others: The keys that it may mean if it is the end of none.

    Raises:
        HimalayaError: No key or several.
    """
    found = [key for key in keys if f".{key}".replace(".", "_").endswith(f"_{name.replace('.', '_')}")]
    found = found or list(others)
    if not found:
        raise unknown_name(f"key in {where}", name, [key.replace(".", "_") for key in keys])
    if len(found) > 1:
        raise HimalayaError(f"{where}.{name} may mean {' or '.join(found)}: write more of the key")
    return found[0]


def _problem(values: SearchRange) -> str:
    """What is wrong with a range; empty if nothing is."""
    if values.type not in TYPES:
        return f"type={values.type}: expected one of {', '.join(TYPES)}"
    if values.type == "categorical":
        if not values.choices:
            return "a categorical needs choices, a list of at least one value"
        wrong = [name for name in ("low", "high", "log", "step") if getattr(values, name) is not None]
        return f"{wrong[0]} belongs to a range of numbers, not to a categorical" if wrong else ""
    if values.choices is not None:
        return f"choices belong to a categorical, not to {values.type}"
    return _range_problem(values)


def _range_problem(values: SearchRange) -> str:
    low, high, step = values.low, values.high, values.step
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high) and low < high):
        return f"low={low}, high={high}: expected two numbers, low below high"
    whole = all(float(number).is_integer() for number in (low, high, step) if number is not None)
    if values.type == "int" and not whole:
        return f"low={low}, high={high}, step={step}: expected whole numbers for an int"
    if values.log is not None and values.type != "int":
        return f"log belongs to an int; write type: {'loguniform' if values.log else 'uniform'}"
    logarithmic = values.type == "loguniform" or bool(values.log)
    if logarithmic and low <= 0:
        return f"low={low}: expected a number above 0 on a logarithmic scale"
    if step is not None and (logarithmic or not 0 < step <= high - low):
        return f"step={step}: expected a number above 0 and at most high - low, and no logarithmic scale"
    return ""
