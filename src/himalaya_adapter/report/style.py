"""The look of all figures: one colour-blind-safe colour per method, one width, one type size, no pyplot state."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from himalaya_adapter.registry import METHODS
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.storage import write_atomic

METHOD_COLORS = {row.type.lower(): row.color for row in METHODS.values() if row.color is not None}
OTHER_COLORS = ("#331111", "#773311", "#554466", "#335544", "#BBAA55")
PART_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#882255", "#999933", "#BBBBBB")
LINE_STYLES = ("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
FROZEN_COLOR = "#7A828E"
BOUND_COLOR = "#B3261E"
INK = "#1F2933"
MUTED_INK = "#5B6673"
GRID_COLOR = "#E4E7EB"
HEAT_MAP_COLORS = "YlGnBu"
SIGNED_COLORS = "PuOr"

FULL_WIDTH = 9.0  # inches; the same for all wide figures, so that their type has one size on the page
TEXT_SIZE = 9.0  # points
SMALL_TEXT_SIZE = 7.5
PNG_DPI = 180
LONGEST_NAME = 26  # characters of a task name on an axis
TIME_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))
MANY_TASKS = 12  # from here on tick labels are small


@dataclass(frozen=True)
class MethodStyle:
    """How one method is drawn; line and marker tell it from others where colours do not."""

    label: str
    color: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str


def method_styles(groups: Sequence[MethodGroup]) -> list[MethodStyle]:
    """One style per method, the same in all figures of a report.

    The first method of a type (``lora``) has the type's own colour in every report; further ones of it, and types
    that have none, take what is left.
    """
    left = list(OTHER_COLORS)
    styles: list[MethodStyle] = []
    for index, group in enumerate(groups):
        own = METHOD_COLORS.get(group.method)
        if own is None or any(own == style.color for style in styles):
            own = left.pop(0)
            left = left or list(OTHER_COLORS)
        line, marker = LINE_STYLES[index % len(LINE_STYLES)], MARKERS[index % len(MARKERS)]
        styles.append(MethodStyle(group.label, own, line, marker))
    return styles


def new_figure(height: float, width: float = FULL_WIDTH) -> Figure:
    """An empty figure of ``width`` × ``height`` inches, on a canvas of its own."""
    # Small type is not equally wide at every resolution, so what is laid out at another one may not fit.
    figure = Figure(figsize=(width, height), dpi=PNG_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, *, x: str = "", y: str = "", grid: Literal["x", "y", "both"] = "y") -> None:
    """Name the axes and take away what carries no information: the frame, ticks, all but a faint grid."""
    axes.set_xlabel(x, fontsize=TEXT_SIZE, color=MUTED_INK)
    axes.set_ylabel(y, fontsize=TEXT_SIZE, color=MUTED_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOR)
    axes.tick_params(length=0, labelsize=TEXT_SIZE, labelcolor=INK)
    axes.grid(axis=grid, color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)


def plain(text: str) -> str:
    """``text`` for matplotlib, to which a dollar sign would start TeX."""
    return text.replace("$", r"\$")


def task_label(index: int, name: str) -> str:
    """``3. name``: position in the stream and the name, shortened."""
    return plain(f"{index + 1}. {shorten(name)}")


def shorten(name: str) -> str:
    """A name cut to what an axis has room for."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def task_text_size(count: int) -> float:
    """Size of task labels, in points."""
    return TEXT_SIZE if count < MANY_TASKS else SMALL_TEXT_SIZE


def name_tasks_below(axes: Axes, tasks: Sequence[str]) -> None:
    """Put the task names on the x axis at 1, 2, …"""
    axes.set_xticks(
        range(1, len(tasks) + 1),
        [task_label(index, name) for index, name in enumerate(tasks)],
        rotation=35,
        ha="right",
        rotation_mode="anchor",
        fontsize=task_text_size(len(tasks)),
    )
    axes.set_xlim(0.4, len(tasks) + 0.6)


def count_tasks_below(axes: Axes, tasks: int) -> None:
    """Number the tasks on the x axis: 1 … ``tasks``."""
    step = 1 if tasks <= MANY_TASKS else 5 * math.ceil(tasks / 50)
    axes.set_xticks(sorted({1, *range(step, tasks + 1, step)}))
    axes.set_xlim(1 - 0.03 * tasks, tasks + 0.03 * tasks)


def measure_time(axis: Axis, longest: float) -> None:
    """Print the ticks of an axis in seconds, minutes or hours, whichever suits ``longest``, in seconds."""
    unit, seconds = next(pair for pair in TIME_UNITS if longest >= pair[1] or pair[0] == "seconds")
    axis.set_major_locator(MultipleLocator(seconds * _round_step(longest / seconds)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / seconds:g}"))
    axis.set_label_text(f"wall-clock {unit}", fontsize=TEXT_SIZE, color=MUTED_INK)


def _round_step(longest: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts ``longest`` into at most five parts."""
    power = 10.0 ** math.floor(math.log10(max(longest, 1e-3) / 5))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= longest)


def draw_line(axes: Axes, points: Sequence[tuple[int, float]], look: MethodStyle) -> None:
    """One method's line with its markers through points ``(x, y)``."""
    xs, ys = zip(*points, strict=True)
    axes.plot(
        xs,
        ys,
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markersize=5,
        linewidth=2,
        clip_on=False,
        label=look.label,
    )


def add_legend(figure: Figure, axes: Axes) -> None:
    """One frameless legend under the whole figure, where it can cover no data."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        [plain(label) for label in labels],
        loc="outside lower center",
        ncols=min(len(labels), 4),
        frameon=False,
        fontsize=TEXT_SIZE,
        labelcolor=INK,
    )


def save_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Write ``<name>.png`` and ``<name>.pdf`` into ``folder`` and return the PNG."""
    content = {}
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout stands now; each format would compute it again
    for suffix in ("pdf", "png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=PNG_DPI)
        content[suffix] = buffer.getvalue()
        write_atomic(folder / f"{name}.{suffix}", content[suffix])
    return content["png"]
