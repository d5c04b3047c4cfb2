"""The part of a run config that says what a search would vary. A plain run checks it and does not search."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from himalaya_adapter.errors import HimalayaError, one_line, unknown_name
from himalaya_adapter.experiments.schema import Count, Number, Section, Switch

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution


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

    def distribution(self) -> "FloatDistribution | IntDistribution | CategoricalDistribution":
        """The same for Optuna, which keeps a choice as its text in JSON.

        Raises:
            HimalayaError: It holds no values, or has a field that its type does not take.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        given = {name: value for name, value in asdict(self).items() if value is not None and name != "type"}
        try:
            if self.type == "categorical":
                return CategoricalDistribution(**given | {"choices": [json.dumps(one) for one in self.choices or ()]})
            if self.type == "int":
                return IntDistribution(**given)
            return FloatDistribution(**given, **({"log": True} if self.type == "loguniform" else {}))
        except (TypeError, ValueError) as error:
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
