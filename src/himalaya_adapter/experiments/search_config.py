"""The part of a run config that says what a search would vary. A plain run checks it and does not search."""

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.experiments.schema import Count, Number, Section, Switch

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TAKES = {
    "uniform": "low and high, perhaps step",
    "loguniform": "low and high",
    "int": "low and high, perhaps log or step",
    "categorical": "choices",
}


@dataclass
class SearchRange(Section):
    """The values that a search may give to one key."""

    type: Literal["uniform", "loguniform", "int", "categorical"]
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

    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def distribution(self) -> "BaseDistribution":
        """The same for Optuna, which keeps a choice as its text in JSON.

        Raises:
            HimalayaError: It holds no values, or has a field that its type does not take.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        fields = self.given()
        kind = fields.pop("type")
        for name in ("low", "high", "step"):
            if kind == "int" and not float(fields.get(name, 0)).is_integer():
                raise HimalayaError(f"{name}={fields[name]} of an int: expected a whole number")
        try:
            if kind == "categorical":
                return CategoricalDistribution(**fields | {"choices": [json.dumps(one) for one in self.choices or ()]})
            if kind == "int":
                return IntDistribution(**fields)
            return FloatDistribution(**fields, **({"log": True} if kind == "loguniform" else {}))
        except TypeError as error:
            raise HimalayaError(
                f"'{self.type}' takes {TAKES[self.type]}; here is {', '.join(self.given())}"
            ) from error
        except ValueError as error:
            raise HimalayaError(one_line(error)) from error

    def value(self, drawn: Any) -> Any:
        """The value of the config that Optuna keeps as ``drawn``."""
        return json.loads(drawn) if self.type == "categorical" else drawn

    def outermost(self) -> list[Any]:
        """The values that must all be possible: the ends of a range, or every choice."""
        if self.choices is not None:
            return self.choices
        return [int(end) if self.type == "int" else end for end in (self.low, self.high) if end is not None]


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
