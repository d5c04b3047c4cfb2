"""Figures of the scores: each function takes methods, each over its seeds, and returns a matplotlib figure.

a_{i,j} is the score on task j after training through task i; a_{0,j} is the score of the frozen model.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from himalaya_adapter.report import style
from himalaya_adapter.report.method_groups import MethodGroup, alone
from himalaya_adapter.report.metric_table import MANY_METHODS
from himalaya_adapter.report.run_folder import Cell, RunRecord

BAR = 0.26  # thickness of one of the three bars of a task
WHISKER_CAP = 2  # points
PANELS_ABREAST = 3
OTHER_METHODS_COLOR = "#C6CDD5"


def retained_accuracy(groups: Sequence[MethodGroup]) -> Figure:
    """Mean score over the tasks seen so far, mean_{j≤i} a_{i,j}, against i; the frozen model as a dashed line.

    A method of several seeds is its mean with a band of ± their standard deviation. Of many methods the lines alone
    are drawn. Where rows of the matrix were not measured, the line is thin and there is no band: nothing is known.
    """
    many = len(groups) >= MANY_METHODS
    figure = style.new_figure(4.6 if many else 3.9)
    axes = figure.subplots()
    for number, (group, look) in enumerate(zip(groups, style.method_styles(groups), strict=True)):
        points = group.retained_accuracy()
        after = [point["after"] for point in points]
        low, high = [point["low"] for point in points], [point["high"] for point in points]
        whole = len(after) == len(group.first.tasks)
        if not many:
            if whole:
                axes.fill_between(after, low, high, color=look.color, alpha=0.14, linewidth=0)
            axes.vlines(after, low, high, color=look.color, alpha=0.35, linewidth=1 if whole else 3)
        apart = math.ceil(len(after) / style.MANY_TASKS)  # markers of long lines, not all at the same place
        axes.plot(
            after,
            [point["mean"] for point in points],
            color=look.color,
            linestyle=look.line,
            marker=look.marker,
            markersize=5,
            markevery=(number % apart, apart) if many else None,
            linewidth=(1.5 if many else 2) if whole else 0.8,
            label=look.label,
        )
    before = groups[0].first.before
    frozen = [total / (i + 1) for i, total in enumerate(accumulate(cell["score"] for cell in before))]
    axes.plot(
        range(1, len(frozen) + 1),
        frozen,
        color=style.FROZEN_COLOR,
        linestyle="dashed",
        marker="_",
        label="frozen model, same tasks",
    )
    style.style_axes(axes, x="tasks learnt", y="mean score over tasks seen so far")
    style.count_tasks_below(axes, len(frozen))
    _fit_scores(axes)
    style.add_legend(figure, axes)
    return figure


def task_scores(run: RunRecord) -> Figure:
    """Three bars a task: before training a_{0,j}, right after learning it a_{j,j}, and now a_{T,j}."""
    (look,) = style.method_styles([alone(run)])
    count = len(run.tasks)
    figure = style.new_figure(1.1 + count * 0.52)
    axes = figure.subplots()
    positions = np.arange(count)
    series = (
        ("before training", run.before, style.FROZEN_COLOR, 0.55),
        ("right after learning", run.after_learning, look.color, 0.45),
        ("now, after the last task", run.final, look.color, 1.0),
    )
    for offset, (label, cells, color, alpha) in zip((-BAR, 0, BAR), series, strict=True):
        scores = [cell["score"] for cell in cells]
        axes.barh(positions + offset, scores, BAR * 0.9, color=color, alpha=alpha, label=label)
        axes.errorbar(
            scores,
            positions + offset,
            xerr=_error(cells),
            ecolor=style.INK,
            elinewidth=1,
            capsize=WHISKER_CAP,
            fmt="none",
        )
    _name_tasks_beside(axes, run)
    style.style_axes(axes, x="score", grid="x")
    axes.set_xlim(0, 1)
    style.add_legend(figure, axes)
    return figure


def task_scores_by_method(groups: Sequence[MethodGroup]) -> Figure:
    """Each task and method: hollow right after learning (a_{j,j}), filled now (a_{T,j}); a grey tick before."""
    count = len(groups[0].first.tasks)
    figure = style.new_figure(1.2 + count * (0.16 + 0.13 * len(groups)))
    axes = figure.subplots()
    positions = np.arange(count)
    step = 0.7 / len(groups)
    for band in positions[::2]:
        axes.axhspan(band - 0.5, band + 0.5, color="#F5F7F9", linewidth=0)
    for index, (group, look) in enumerate(zip(groups, style.method_styles(groups), strict=True)):
        heights = positions + (index - (len(groups) - 1) / 2) * step
        learnt = [cell["score"] for cell in group.after_learning]
        now = [cell["score"] for cell in group.final]
        axes.hlines(heights, learnt, now, color=look.color, linewidth=5, alpha=0.25)
        axes.errorbar(now, heights, xerr=_error(group.final), ecolor=look.color, elinewidth=0.9, fmt="none")
        axes.plot(
            learnt,
            heights,
            linestyle="none",
            marker=look.marker,
            markersize=5,
            markerfacecolor="white",
            markeredgecolor=look.color,
        )
        axes.plot(now, heights, linestyle="none", marker=look.marker, markersize=5, color=look.color, label=look.label)
    axes.plot(
        [],
        [],
        linestyle="none",
        marker="o",
        markersize=5,
        markerfacecolor="white",
        markeredgecolor=style.INK,
        label="right after learning",
    )
    axes.plot(
        [cell["score"] for cell in groups[0].first.before],
        positions,
        linestyle="none",
        marker="|",
        markersize=13,
        markeredgewidth=1.6,
        color=style.FROZEN_COLOR,
        label="frozen model",
    )
    _name_tasks_beside(axes, groups[0].first)
    style.style_axes(axes, x="score", grid="x")
    axes.set_xlim(-0.01, 1.01)
    style.add_legend(figure, axes)
    return figure


def learning_by_position(groups: Sequence[MethodGroup]) -> Figure:
    """Learning accuracy a_{j,j} against the position j in the stream, and the frozen model's score of that task.

    Many methods have a panel each, in which the others are grey.
    """
    if len(groups) >= MANY_METHODS:
        return _learning_panels(groups)
    count = len(groups[0].first.tasks)
    figure = style.new_figure(4.3)
    axes = figure.subplots()
    step = 0.6 / len(groups)
    positions = np.arange(1, count + 1)
    frozen = [cell["score"] for cell in groups[0].first.before]
    axes.hlines(
        frozen, positions - 0.38, positions + 0.38, color=style.FROZEN_COLOR, linewidth=2, label="frozen model"
    )
    for index, (group, look) in enumerate(zip(groups, style.method_styles(groups), strict=True)):
        shifted = positions + (index - (len(groups) - 1) / 2) * step
        learnt = [cell["score"] for cell in group.after_learning]
        axes.errorbar(
            shifted,
            learnt,
            yerr=_error(group.after_learning),
            ecolor=look.color,
            alpha=0.6,
            elinewidth=1,
            capsize=WHISKER_CAP,
            fmt="none",
        )
        axes.plot(
            shifted, learnt, color=look.color, linestyle="none", marker=look.marker, markersize=5, label=look.label
        )
    style.style_axes(axes, y="score right after learning")
    style.name_tasks_below(axes, groups[0].first.tasks)
    axes.set_ylim(0, 1)
    style.add_legend(figure, axes)
    return figure


def _learning_panels(groups: Sequence[MethodGroup]) -> Figure:
    rows = math.ceil(len(groups) / PANELS_ABREAST)
    first = groups[0].first
    figure = style.new_figure(0.5 + 1.45 * rows)
    grid = figure.subplots(rows, PANELS_ABREAST, sharex=True, sharey=True, squeeze=False).flatten()
    positions = np.arange(1, len(first.tasks) + 1)
    learnt = [[cell["score"] for cell in group.after_learning] for group in groups]
    frozen = [cell["score"] for cell in first.before]
    for axes, group, look, scores in zip(grid, groups, style.method_styles(groups), learnt, strict=False):
        for other in learnt:
            axes.plot(positions, other, linestyle="none", marker="o", markersize=2.4, color=OTHER_METHODS_COLOR)
        axes.plot(positions, frozen, linestyle="none", marker="_", markersize=7, color=style.FROZEN_COLOR)
        axes.vlines(positions, frozen, scores, color=look.color, alpha=0.3, linewidth=1.2)
        axes.errorbar(
            positions,
            scores,
            yerr=_error(group.after_learning),
            ecolor=look.color,
            alpha=0.6,
            elinewidth=1,
            fmt="none",
        )
        axes.plot(positions, scores, color=look.color, linestyle="none", marker=look.marker, markersize=4)
        axes.set_title(style.plain(look.label), fontsize=style.TEXT_SIZE, color=style.INK, loc="left", pad=3)
        style.style_axes(axes)
        style.count_tasks_below(axes, len(first.tasks))
        axes.set_ylim(0, 1)
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(groups) - PANELS_ABREAST) : len(groups)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("position of the task in the stream", fontsize=style.TEXT_SIZE, color=style.MUTED_INK)
    figure.supylabel("score right after learning", fontsize=style.TEXT_SIZE, color=style.MUTED_INK)
    return figure


def _error(cells: Sequence[Cell]) -> np.ndarray:
    """Distances of the interval's ends from the score, (2, tasks), as ``errorbar`` wants them."""
    return np.array([[max(0.0, c["score"] - c["low"]), max(0.0, c["high"] - c["score"])] for c in cells]).T


def _fit_scores(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(1.0, high))


def _name_tasks_beside(axes: Axes, run: RunRecord) -> None:
    count = len(run.tasks)
    labels = [f"{style.task_label(j, name)}  (n = {run.final[j]['n']})" for j, name in enumerate(run.tasks)]
    axes.set_yticks(range(count), labels)
    axes.set_ylim(count - 0.4, -0.6)
