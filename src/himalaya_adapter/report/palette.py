"""Colours of methods and of everything else that is drawn: each readable on a bright page and on a dark one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

from himalaya_adapter.registry import METHODS

METHOD_COLORS = {row.type.lower(): row.color for row in METHODS.values() if row.color is not None}
OTHER_COLORS = ("#915D52", "#E7298A", "#5B8C00", "#00838F", "#9E7B00", "#B05CC6", "#5A6B8C")
PART_COLORS = ("#0072B2", "#4999C6", "#009E73", "#C38700", "#D55E00", "#CC79A7", "#A2527A", "#999933")
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # as matplotlib names them
FROZEN, BOUND, OWN = "#7A828E", "#C8372F", PART_COLORS[0]


@dataclass(frozen=True)
class Look:
    """How a method or a part is drawn; dash and marker tell it from others where colours do not."""

    label: str
    color: str
    dash: str = ""
    marker: str = MARKERS[0]


def method_looks(methods: Sequence[tuple[str, str | None]]) -> list[Look]:
    """One look per method, the same in all figures of a report.

    The first method of a type (``lora``) has the type's own colour in every report; further ones of it, and what has
    no type or one without a colour, take what is left.

    Args:
        methods: What each is called, and its type.
    """
    left, colors = cycle(OTHER_COLORS), list[str]()
    for _, kind in methods:
        own = METHOD_COLORS.get(kind or "")
        colors.append(next(left) if own is None or own in colors else own)
    return _looks([label for label, _ in methods], colors)


def part_looks(names: Sequence[str]) -> list[Look]:
    """Looks of things that are no methods."""
    return _looks(names, cycle(PART_COLORS))


def _looks(names: Sequence[str], colors: Iterable[str]) -> list[Look]:
    return [Look(*look) for look in zip(names, colors, cycle(DASHES), cycle(MARKERS), strict=False)]
