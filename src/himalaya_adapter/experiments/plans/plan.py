"""An experiment plan: its fields, and one clear line for whatever is wrong in them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from himalaya_adapter.documents import parse_document, read_text, without_interpolations
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.schema import Named, Section, parse

PLANS = CONF / "plans"
Text = Annotated[Named, Field(pattern=r"\S", json_schema_extra={"expected": "non-empty text"})]
Texts = Annotated[list[Text], Field(min_length=1)]


@dataclass
class Design(Section):
    """What is run. Prose is kept for people: no number is read from it."""

    experiment_summary: Text
    """What is done, in prose."""
    proposed_method: Text
    """Text that begins with the name of the method."""
    models_to_use: Texts
    """Backbones: names of the catalogue, hub ids or folders; other names need ``settings`` with the backbone."""
    datasets_to_use: Texts
    """Streams: names, or paths of YAML files."""
    comparative_methods: list[Text] = field(default_factory=list)
    """The rivals, each a text that begins with a name."""
    hyperparameters_to_search: dict[str, Any] = field(default_factory=dict)
    """Ranges: ``low-high``, ``a,b,c``, a list of choices, or an entry of a search space."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Values by keys of a run config, for every run whose method has the key."""
    evaluation_metrics: list[Text] = field(default_factory=list)
    """Metrics, in prose."""
    external_resources: Any = None
    """Kept for people."""
    experiment_code: Any = None
    """Kept for people."""

    def methods(self) -> dict[str, str]:
        """The texts of the methods by what a planned run calls them."""
        rivals = {f"comparative-{place}": text for place, text in enumerate(self.comparative_methods, start=1)}
        return {"proposed": self.proposed_method, **rivals}


@dataclass
class PlannedRun(Section):
    """A run of a plan."""

    run_id: Text
    """Its name."""
    method: Text
    """``proposed``, or ``comparative-N`` for the N-th of ``comparative_methods``."""
    model: Text
    """One of ``models_to_use``, as it stands there."""
    dataset: Text | None = None
    """One of ``datasets_to_use``; ``null`` for the only one there is."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Values for this run alone, by keys of a run config."""


@dataclass
class Plan(Section):
    """A plan."""

    experimental_design: Design
    """What is run."""
    experiment_runs: Annotated[list[PlannedRun], Field(min_length=1)] | None = None
    """The runs; ``null`` for every method on every model and dataset."""
    hypothesis: dict[str, Any] | None = None
    """Kept for people."""
    method: str | None = None
    """Kept for people."""
    environment: dict[str, Any] | None = None
    """Kept for people."""


def read_plan(name: str) -> tuple[str, Plan]:
    """The text of a plan, and what it says.

    Args:
        name: The path of a YAML or (``.json``) JSON file, or the name of a packaged plan.

    Raises:
        HimalayaError: An unreadable file, a field that is missing, unknown or of the wrong type.
    """
    packaged = PLANS / f"{name}.yaml"
    path = packaged if packaged.is_file() else Path(name)
    text, here = read_text(path), f"plan {path}"
    content = without_interpolations(parse_document(text, here, json_text=path.suffix.lower() == ".json"), here)
    return text, parse(Plan, content, here)
