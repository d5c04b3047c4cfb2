"""Figures for papers, as PNG and PDF: one width, one look (``templates/paper.mplstyle``), no pyplot state."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Sheet
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from himalaya_adapter.report.charts import XY, Axis, Figure, Heat, Series
from himalaya_adapter.report.formats import format_value
from himalaya_adapter.report.palette import BOUND
from himalaya_adapter.report.table import TEMPLATES

FULL_WIDTH = 9.0  # inches; the same for all figures, so that their type has one size on the page
ROW, FEWEST_ROWS = 0.26, 4  # inches of a name at the y axis
ABREAST = 3  # charts
LONGEST_NAME, LONGEST_LABEL = 26, 60  # characters of a name on an axis, and of what the axis is called
MOST_BANDS = 4  # lines up to which their intervals are drawn
MANY_CELLS = 30  # columns of a map from which on its cells have no room for their values
INK = "#1F2933"
SCORES, SIGNED = "YlGnBu", "PuOr"  # matplotlib's names of the scales


def write(figures: Sequence[Figure], folder: Path, stem: str) -> None:
    """Write ``<stem>_<topic>.png`` and ``.pdf`` of each figure into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        drawn = draw(figure)
        for suffix in ("png", "pdf"):
            drawn.savefig(folder / f"{stem}_{figure.topic}.{suffix}")


@contextmanager
def sheet(height: float) -> Iterator[Sheet]:
    """An empty figure of so many inches; what is drawn inside of the block has the look of all figures."""
    with matplotlib.style.context(str(TEMPLATES / "paper.mplstyle")):
        yield Sheet(figsize=(FULL_WIDTH, height))


def draw(figure: Figure) -> Sheet:
    """The figure by matplotlib."""
    abreast = min(len(figure.charts), ABREAST)
    lines = math.ceil(len(figure.charts) / abreast)
    tallest = max(_height(chart, abreast) for chart in figure.charts)
    with sheet(0.6 + lines * tallest) as drawn:
        grid = drawn.subplots(lines, abreast, squeeze=False).flatten()
        for axes, chart in zip(grid, figure.charts, strict=False):
            _draw_heat(drawn, axes, chart) if isinstance(chart, Heat) else _draw_xy(axes, chart)
        for axes in grid[len(figure.charts) :]:
            axes.set_visible(False)
        named = {label: line for axes in grid for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        keys = [line for label, line in named.items() if label not in {chart.title for chart in figure.charts}]
        if len(named) > 1:
            drawn.legend(handles=keys, loc="outside lower center", ncols=4)
    return drawn


def _height(chart: XY | Heat, abreast: int) -> float:
    names = chart.rows if isinstance(chart, Heat) else chart.y.names
    return max(FEWEST_ROWS, len(names)) * ROW + 0.9 if names else 3.6 if abreast == 1 else 2.4


def _draw_xy(axes: Axes, chart: XY) -> None:
    across = chart.y.scale == "names"
    bands = sum(one.line for one in chart.series) <= MOST_BANDS
    for one in chart.series:
        _draw_series(axes, one, across, bands)
    for value, name in chart.bounds:
        (axes.axvline if across else axes.axhline)(value, color=BOUND, linestyle="dashed", linewidth=1.2, label=name)
    if across:
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
    x, y = (_plain(axis.label, LONGEST_LABEL) for axis in (chart.x, chart.y))
    axes.set(title=_plain(chart.title), xlabel=x, ylabel=y)
    _scale(axes, chart.x, "x")
    _scale(axes, chart.y, "y")


def _draw_series(axes: Axes, one: Series, across: bool, bands: bool) -> None:
    look = one.look
    xs, ys, *ends = np.array(one.points, dtype=float).T
    if ends and one.line and bands:
        axes.fill_between(xs, *ends, color=look.color, alpha=0.14, linewidth=0)
    elif ends and not one.line:
        value = xs if across else ys
        errors = np.clip([value - ends[0], ends[1] - value], 0, None)
        axes.errorbar(xs, ys, **{"xerr" if across else "yerr": errors}, ecolor=look.color, elinewidth=1, fmt="none")
    axes.plot(
        xs,
        ys,
        color=look.color,
        linestyle=(0, [float(length) for length in look.dash.split()] or None) if one.line else "none",
        marker=look.marker,
        markerfacecolor="white" if one.hollow else look.color,
        label=_plain(look.label),
        clip_on=False,
    )


def _scale(axes: Axes, axis: Axis, which: Literal["x", "y"]) -> None:
    of = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.low if not axis.names else 0.6, axis.high
    if axis.scale == "names":
        of.set_ticks(range(len(axis.names)), [_plain(name) for name in axis.names])
        low, high = -0.5, len(axis.names) - 0.5
    elif axis.scale == "log":
        axes.set(**{f"{which}scale": "log"})
    else:
        of.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=bool(axis.names)))
    if axis.kind in ("bytes", "seconds"):
        of.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, axis.kind) if value else "0"))
    axes.set(**{f"{which}lim": (low, high) if which == "x" or axis.scale != "names" else (high, low)})


def _draw_heat(sheet: Sheet, axes: Axes, chart: Heat) -> None:
    values = np.full((len(chart.rows), len(chart.columns)), math.nan)
    for row, cells in enumerate(chart.values):
        values[row, : len(cells)] = np.array(cells, dtype=float)
    widest = max(0.05, float(np.nanmax(np.abs(values)))) if chart.signed else 1.0
    image = axes.imshow(
        values, SIGNED if chart.signed else SCORES, vmin=-widest if chart.signed else 0, vmax=widest, aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values):
        if len(chart.columns) < MANY_CELLS and not math.isnan(value):
            color = "white" if abs(value) > 0.6 * widest else INK
            text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".").replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=6.2, color=color)
    for row, column in chart.framed:
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.2))
    axes.set_title(_plain(chart.title))
    axes.grid(visible=False)
    if len(chart.columns) < MANY_CELLS:
        axes.set_xticks(range(len(chart.columns)), map(_plain, chart.columns), rotation=40, ha="right")
    axes.set_yticks(range(len(chart.rows)), map(_plain, chart.rows))
    sheet.colorbar(image, ax=axes, shrink=0.6, aspect=24, pad=0.02).outline.set_visible(False)


def _plain(text: str, longest: int = LONGEST_NAME) -> str:
    """A text cut to what there is room for; a dollar sign would start TeX."""
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")
