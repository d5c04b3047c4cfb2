"""The forest plot of the paired differences between methods."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from himalaya_adapter.report import style
from himalaya_adapter.report.comparison import Comparison, Difference
from himalaya_adapter.stream_metrics import METRICS, Metric

BETTER_SIDE = "#EAF2F8"  # the half of a panel in which the reference is better
SMALLEST_ROOM = 0.002  # beside the outermost interval


def paired_differences(comparison: Comparison) -> Figure | None:
    """The reference minus every other method with its 95 % interval, a panel per measure; None without tests.

    Filled marks are significant after Holm's correction. The tinted half is where the reference is better.
    """
    tested = {difference.of for difference in comparison.measures}
    panels = [metric for metric in METRICS if metric.key in tested]
    others = comparison.others
    if not panels:
        return None
    looks = dict(zip((g.label for g in comparison.groups), style.method_styles(comparison.groups), strict=True))
    figure = style.new_figure(1.5 + 0.34 * len(others))
    every = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, metric in zip(every, panels, strict=True):
        found = [comparison.difference(other, metric.key) for other in others]
        _draw_panel(axes, metric, found)
        for row, difference in enumerate(found):
            if difference is not None:
                look, test = looks[difference.other.label], difference.test
                axes.plot([test.low, test.high], [row, row], color=look.color, linewidth=2, solid_capstyle="butt")
                axes.plot(
                    test.difference,
                    row,
                    marker=look.marker,
                    markersize=6,
                    color=look.color,
                    markerfacecolor=look.color if difference.significant else "white",
                    markeredgewidth=1.5,
                )
        axes.set_yticks(range(len(others)), [style.plain(style.shorten(other.label)) for other in others])
        axes.set_ylim(len(others) - 0.5, -0.5)
    reference = style.plain(comparison.reference.label)
    figure.supxlabel(
        f"{reference} minus the other method; tinted: {reference} is better",
        fontsize=style.TEXT_SIZE,
        color=style.MUTED_INK,
    )
    return figure


def _draw_panel(axes: Axes, metric: Metric, found: list[Difference | None]) -> None:
    ends = [0.0, *(end for one in found if one is not None for end in (one.test.low, one.test.high))]
    room = max(0.15 * (max(ends) - min(ends)), SMALLEST_ROOM)
    left, right = min(ends) - room, max(ends) + room
    better = (left, 0) if metric.better == "lower" else (0, right)
    axes.axvspan(*better, color=BETTER_SIDE, linewidth=0)
    axes.axvline(0, color=style.MUTED_INK, linewidth=1)
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_title(metric.title.split(" (")[0], fontsize=style.TEXT_SIZE, color=style.INK, loc="left")
    style.style_axes(axes, grid="x")
    axes.tick_params(axis="x", labelsize=style.SMALL_TEXT_SIZE)
