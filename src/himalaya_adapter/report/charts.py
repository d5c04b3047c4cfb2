"""Figures as data: ``templates/report.js`` draws them in a page, ``paper`` for print."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from himalaya_adapter.report.palette import Look
from himalaya_adapter.report.table import texts
from himalaya_adapter.stream_metrics import Kind

DIGITS = 5  # significant ones of a number in a page
Value = float | None
Point = Sequence[Value]  # x, y, and where they are known the two ends of its interval


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: What it shows.
        kind: How its values are printed.
        scale: ``names`` puts the names at its ticks.
        names: What the whole numbers stand for, from 0 on at ticks, else from 1 on.
        low: Where it begins, if not with the data.
        high: Where it ends.
    """

    label: str = ""
    kind: Kind = "count"
    scale: Literal["linear", "log", "names"] = "linear"
    names: Sequence[str] = ()
    low: Value = None
    high: Value = None


@dataclass(frozen=True)
class Series:
    """Points of one look; None for both coordinates ends a line.

    Attributes:
        look: Its name, colour, dash and marker.
        points: ``(x, y)`` or ``(x, y, low, high)``; the interval is of y, or of x where names stand at the y axis.
        line: Whether the points are joined.
        hollow: Whether its markers are.
        notes: What else is said of each point.
    """

    look: Look
    points: Sequence[Point]
    line: bool = False
    hollow: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class XY:
    """Points and lines; ``bounds`` are values with a name, each a dashed line across."""

    series: Sequence[Series]
    x: Axis
    y: Axis
    title: str = ""
    bounds: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Heat:
    """A map of values.

    Attributes:
        values: A row of numbers for each name of ``rows``; a row may be short, None is blank.
        rows: Names of the rows.
        columns: Names of the columns.
        signed: Between two colours, 0 in the middle; else the values lie in [0, 1].
        title: What it shows.
        framed: Positions ``(row, column)`` that are outlined.
        gap: A line is drawn after so many rows (positive) or columns (negative).
    """

    values: Sequence[Sequence[Value]]
    rows: Sequence[str]
    columns: Sequence[str]
    signed: bool = False
    title: str = ""
    framed: Sequence[tuple[int, int]] = ()
    gap: int = 0


@dataclass(frozen=True)
class Figure:
    """Charts under one title, with the sentence that says how to read them.

    ``topic`` ends the names of its files; a page shows a ``folded`` one only when it is asked to.
    """

    topic: str
    title: str
    reading: str
    charts: Sequence[XY | Heat]
    folded: bool = False


def figure(topic: str, *charts: XY | Heat, folded: bool = False) -> Figure:
    """A figure whose title and reading are those of its topic."""
    return Figure(topic, *texts()[topic], charts, folded)


def as_data(part: Any) -> Any:
    """A chart as the page's script reads it: its attributes that are not the usual ones, its numbers short."""
    if is_dataclass(part):
        named = {field.name: (getattr(part, field.name), field.default) for field in fields(part)}
        return {name: as_data(value) for name, (value, usual) in named.items() if value != usual}
    if isinstance(part, Sequence) and not isinstance(part, str):
        return [as_data(one) for one in part]
    return float(f"{part:.{DIGITS}g}") if isinstance(part, float) else part
