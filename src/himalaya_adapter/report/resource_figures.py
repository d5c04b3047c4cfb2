"""Figures of what a run costs: stored bytes, norms and time."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from himalaya_adapter.report import style
from himalaya_adapter.report.method_groups import MethodGroup, alone
from himalaya_adapter.report.metric_table import format_bytes, format_seconds
from himalaya_adapter.report.run_folder import RunRecord
from himalaya_adapter.stream_metrics import ATOM_NORM_BOUND, update_norm_bound

SMALLEST_SHARE = 0.01  # of all bytes, below which a part has no colour of its own
WIDE_RANGE = 8  # largest by smallest size from which on bytes stand on a logarithmic axis
PALE = 0.4  # opacity of evaluation beside training
SHORTEST_NAMED = 0.1  # share of the widest bar below which a time does not fit into its bar


def stored_bytes_by_part(run: RunRecord) -> Figure | None:
    """Stored bytes after each task, stacked by part, the largest part at the bottom; None if not recorded."""
    events = [event for event in run.task_ends if event.get("stored_bytes_by_part")]
    if not events:
        return None
    by_part = [_component_bytes(event["stored_bytes_by_part"]) for event in events]
    largest = {
        part: max(sizes.get(part, 0) for sizes in by_part)
        for part in sorted({part for sizes in by_part for part in sizes})
    }
    figure = style.new_figure(4.1)
    axes = figure.subplots()
    positions = [event["index"] + 1 for event in events]
    bottom = np.zeros(len(events))
    for number, part in enumerate(sorted(largest, key=lambda part: -largest[part])):
        sizes = np.array([one.get(part, 0) for one in by_part], dtype=float)
        color = style.PART_COLORS[number % len(style.PART_COLORS)]
        axes.bar(positions, sizes, 0.7, bottom=bottom, color=color, edgecolor="white", linewidth=0.4, label=part)
        bottom += sizes
    for position, total in zip(positions, bottom, strict=True):
        if position == positions[-1] or len(events) < style.MANY_TASKS:
            axes.text(position, total, format_bytes(total), ha="center", va="bottom", fontsize=style.SMALL_TEXT_SIZE)
    style.style_axes(axes, y="stored bytes")
    style.name_tasks_below(axes, run.tasks)
    _byte_axis(axes, bottom.max())
    style.add_legend(figure, axes)
    return figure


def _component_bytes(parts: Mapping[str, int]) -> Counter[str]:
    """Sizes summed by what stands before the first dot of a part's name; what is hardly to be seen goes together."""
    components: Counter[str] = Counter()
    for part, size in parts.items():
        components[part.split(".", 1)[0]] += size
    smallest = SMALLEST_SHARE * components.total()
    shown: Counter[str] = Counter()
    for component, size in components.items():
        shown[component if size >= smallest else "everything else"] += size
    return shown


def stored_bytes_over_tasks(groups: Sequence[MethodGroup]) -> Figure | None:
    """Stored bytes after each task, a line per method; None if none recorded them."""
    figure = style.new_figure(3.6)
    axes = figure.subplots()
    sizes: list[float] = []
    for group, look in zip(groups, style.method_styles(groups), strict=True):
        points = [(learnt, size) for learnt, size in group.after_tasks("stored_bytes") if size]
        if points:
            style.draw_line(axes, points, look)
            sizes += [size for _, size in points]
    if not sizes:
        return None
    style.style_axes(axes, x="tasks learnt", y="stored bytes")
    style.count_tasks_below(axes, len(groups[0].first.tasks))
    _byte_axis(axes, max(sizes))
    if max(sizes) > WIDE_RANGE * min(sizes):
        axes.set_yscale("log")
        axes.set_ylim(min(sizes) / 1.5, 1.5 * max(sizes))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: format_bytes(size)))
        axes.minorticks_off()
    style.add_legend(figure, axes)
    return figure


def norms(groups: Sequence[MethodGroup]) -> Figure | None:
    """Largest update norm and atom norm seen up to each task, with their bounds; None if none were recorded."""
    bounded = [group for group in groups if group.after_tasks("update_norm_max")]
    if not bounded:
        return None
    bound = max(update_norm_bound(group.first.adapter_config) for group in bounded)
    panels = (
        ("update_norm_max", "largest update norm ‖ΔW‖", bound),
        ("atom_norm_max", "largest atom norm", ATOM_NORM_BOUND),
    )
    figure = style.new_figure(3.4)
    both = figure.subplots(1, 2)
    for axes, (key, title, bound) in zip(both, panels, strict=True):
        seen = []
        for group, look in zip(groups, style.method_styles(groups), strict=True):
            points = group.after_tasks(key, max)
            if points:
                style.draw_line(axes, points, look)
                seen += [value for _, value in points]
        axes.axhline(bound, color=style.BOUND_COLOR, linestyle="dashed", linewidth=1.2)
        lowest, highest = min([*seen, bound]), max([*seen, bound])
        room = 0.2 * max(highest - lowest, 0.05)
        axes.set_ylim(lowest - room, highest + room)
        axes.annotate(
            f"bound {bound:g}",
            (0.99, bound),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=style.SMALL_TEXT_SIZE,
            color=style.BOUND_COLOR,
        )
        axes.set_title(title, fontsize=style.TEXT_SIZE, color=style.INK, loc="left")
        style.style_axes(axes, x="tasks learnt")
        style.count_tasks_below(axes, len(groups[0].first.tasks))
    if len(groups) > 1:
        style.add_legend(figure, max(both, key=lambda axes: len(axes.get_legend_handles_labels()[1])))
    return figure


def seconds_per_task(run: RunRecord) -> Figure:
    """Training time of each task beside that of the evaluation after it: of all tasks so far, or of this one."""
    (look,) = style.method_styles([alone(run)])
    figure = style.new_figure(3.8)
    axes = figure.subplots()
    trained = [(e["index"] + 1, e["train_seconds"]) for e in run.task_ends if e.get("train_seconds") is not None]
    evaluated = [sum(cell["seconds"] for cell in row if cell) for row in run.rows]
    positions = np.arange(1, len(run.rows) + 1)
    axes.bar([x - 0.19 for x, _ in trained], [y for _, y in trained], 0.36, color=look.color, label="training")
    axes.bar(positions + 0.19, evaluated, 0.36, color=look.color, alpha=PALE, label="evaluation after it")
    style.style_axes(axes)
    style.name_tasks_below(axes, run.tasks)
    style.measure_time(axes.yaxis, max([*evaluated, *(seconds for _, seconds in trained)]))
    style.add_legend(figure, axes)
    return figure


def total_seconds(groups: Sequence[MethodGroup]) -> Figure:
    """Training and evaluation time of each method, over its seeds."""
    figure = style.new_figure(1.2 + 0.42 * len(groups))
    axes = figure.subplots()
    looks = style.method_styles(groups)
    start = np.zeros(len(groups))
    spent = {
        key: np.array([fmean(group.values(key) or [0.0]) for group in groups])
        for key in ("train_seconds", "eval_seconds")
    }
    longest = float((spent["train_seconds"] + spent["eval_seconds"]).max())
    for key, label, alpha, ink in (
        ("train_seconds", "training", 1.0, "white"),
        ("eval_seconds", "evaluation", PALE, style.INK),
    ):
        seconds = spent[key]
        axes.barh(range(len(groups)), seconds, 0.6, left=start, color=[look.color for look in looks], alpha=alpha)
        axes.bar(0, 0, color=style.FROZEN_COLOR, alpha=alpha, label=label)  # a grey entry in the legend for all runs
        for row, (left, value) in enumerate(zip(start, seconds, strict=True)):
            if value > SHORTEST_NAMED * longest:
                axes.text(
                    left + value / 2,
                    row,
                    format_seconds(value),
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=style.SMALL_TEXT_SIZE,
                )
        start += seconds
    axes.set_yticks(range(len(groups)), [style.plain(look.label) for look in looks])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(0, 1.02 * longest or 1.0)
    style.style_axes(axes, grid="x")
    style.measure_time(axes.xaxis, longest)
    style.add_legend(figure, axes)
    return figure


def _byte_axis(axes: Axes, top: float) -> None:
    axes.set_ylim(0, 1.12 * top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: format_bytes(size) if size else "0"))
