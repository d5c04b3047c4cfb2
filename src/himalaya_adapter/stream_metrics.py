"""The numbers of a run over a whole stream: one table from which configs, runs, searches and reports read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from himalaya_adapter.documents import read_document

LETTER_NORM_BOUND = 1.0  # ‖ΔW‖ ≤ 1, where an adapter's config names no other bound
ATOM_NORM_BOUND = 1.05  # rows of the dictionary after 3-bit storage

Kind = Literal["score", "signed", "bytes", "count", "seconds", "norm"]
Better = Literal["higher", "lower", "near zero"]
Mark = Literal["of matrix", "of measured rows", "of several tasks", "paired", "headline", "unranked"]
Interval = Literal["recorded", "curve", "after_learning", "before"]
Bound = Callable[[Mapping[str, Any]], float]  # of a run's ``adapter_config.json``


def update_norm_bound(adapter_config: Mapping[str, Any]) -> float:
    """What the norm of an adapter's update cannot exceed."""
    return float(adapter_config.get("norm_bound", LETTER_NORM_BOUND))


BOUNDS: dict[str, Bound] = {"update_norm_max": update_norm_bound, "atom_norm_max": lambda _: ATOM_NORM_BOUND}


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    Attributes:
        key: Its name in ``metrics.json``.
        title: Its name for people.
        formula: What it is.
        kind: How it is printed.
        better: Which values are better.
        marks: ``of matrix``: ``evaluation.metrics`` has a function of this name that computes it from the accuracy
            matrix. ``of measured rows``: it depends on which rows of the matrix were measured. ``of several tasks``:
            it says nothing of a single task. ``paired``: it is tested between methods on the same test items.
            ``headline``: it is shown first where there are many methods. ``unranked``: no method is best in it.
        interval: Where its 95 % interval comes from: ``recorded`` as ``<key>_low`` and ``<key>_high``; the last point
            of the ``curve`` of retained accuracy; the cells of independent tasks, ``after_learning`` or ``before``.
    """

    key: str
    title: str
    formula: str
    kind: Kind = "score"
    better: Better = "higher"
    marks: tuple[Mark, ...] = ()
    interval: Interval | None = None

    @property
    def bound(self) -> Bound | None:
        """What it cannot exceed, if there is such a bound."""
        return BOUNDS.get(self.key)


METRICS = TypeAdapter(tuple[Metric, ...]).validate_python(read_document(Path(__file__).with_suffix(".yaml")))


def keys(mark: Mark) -> tuple[str, ...]:
    """The keys of the metrics with a mark."""
    return tuple(metric.key for metric in METRICS if mark in metric.marks)


LOWER_IS_BETTER = frozenset(metric.key for metric in METRICS if metric.better == "lower")
