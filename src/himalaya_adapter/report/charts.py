"""Figures as data: ``templates/report.js`` draws them in a page, ``paper`` for print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from himalaya_adapter.report.palette import Look
from himalaya_adapter.report.run_folder import Cell
from himalaya_adapter.report.texts import text_of
from himalaya_adapter.stream_metrics import Kind

DIGITS = 5  # significant ones of a number in a page
Value = float | None
Point = tuple[Value, ...]  # x, y, and where they are known the two ends of its interval


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: What it shows.
        kind: How its values are printed.
        scale: ``names`` puts the names at its ticks, 0 first.
        names: What the whole numbers from ``first`` on stand for.
        first: The number of the first name.
        low: Where it begins, if not with the data.
        high: Where it ends.
    """

    label: str = ""
    kind: Kind = "count"
    scale: Literal["linear", "log", "names"] = "linear"
    names: tuple[str, ...] = ()
    first: int = 0
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
    points: tuple[Point, ...]
    line: bool = False
    hollow: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class XY:
    """Points and lines; ``bounds`` are values with a name, each a dashed line across."""

    series: tuple[Series, ...]
    x: Axis
    y: Axis
    title: str = ""
    bounds: tuple[tuple[float, str], ...] = ()

    @property
    def data(self) -> dict[str, Any]:
        """As the page's script reads it."""
        return {
            "series": [
                {
                    "name": one.look.label,
                    "color": [one.look.light, one.look.dark],
                    **_given(dash=one.look.dash, marker=one.look.marker, line=one.line, hollow=one.hollow),
                    **_given(notes=one.notes),
                    "points": [[_short(value) for value in point] for point in one.points],
                }
                for one in self.series
            ],
            "x": _axis(self.x),
            "y": _axis(self.y),
            **_given(title=self.title, bounds=self.bounds),
        }


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
        notes: What else is said of a cell, as long as the rows.
        gap: A line is drawn after so many rows (positive) or columns (negative).
    """

    values: Sequence[Sequence[Value]]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    signed: bool = False
    title: str = ""
    framed: tuple[tuple[int, int], ...] = ()
    notes: Sequence[Sequence[str]] = ()
    gap: int = 0

    @property
    def data(self) -> dict[str, Any]:
        """As the page's script reads it."""
        return {
            "values": [[_short(value) for value in row] for row in self.values],
            "rows": self.rows,
            "columns": self.columns,
            **_given(signed=self.signed, title=self.title, framed=self.framed, notes=self.notes, gap=self.gap),
        }


@dataclass(frozen=True)
class Figure:
    """Charts under one title, with the sentence that says how to read them.

    ``topic`` ends the names of its files; a page shows a ``folded`` one only when it is asked to.
    """

    topic: str
    title: str
    reading: str
    charts: tuple[XY | Heat, ...]
    folded: bool = False


def figure(topic: str, *charts: XY | Heat, also: str = "") -> Figure:
    """A figure whose title and reading are those of its topic; ``also`` is said after them."""
    title, reading = text_of(topic)
    return Figure(topic, title, f"{reading} {also}".strip(), charts)


def drawn(look: Look, points: Sequence[Point], **how: Any) -> Series:
    """A series from points in any sequence."""
    return Series(look, tuple(points), **how)


def hollow(look: Look, label: str) -> Look:
    """The same look under another name, without a dash."""
    return replace(look, label=label, dash="")


def tasks_axis(tasks: Sequence[str], label: str = "tasks learnt") -> Axis:
    """The places 1, 2, … in a stream."""
    return Axis(label, names=tuple(tasks), first=1)


def numbered(tasks: Sequence[str]) -> tuple[str, ...]:
    """``3. name``: the place in the stream and the name."""
    return tuple(f"{place}. {name}" for place, name in enumerate(tasks, start=1))


def interval(cell: Cell) -> tuple[float, float, float]:
    """Score and interval of a cell."""
    return cell["score"], cell["low"], cell["high"]


def _axis(axis: Axis) -> dict[str, Any]:
    plain = vars(Axis())
    return {name: value for name, value in vars(axis).items() if value != plain[name]}


def _given(**values: Any) -> Mapping[str, Any]:
    return {name: value for name, value in values.items() if value}


def _short(value: Value) -> Value:
    return None if value is None else float(f"{value:.{DIGITS}g}")
