"""Heat maps: the accuracy matrix, the use of gates and atoms, and many methods over many tasks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from himalaya_adapter.report import style
from himalaya_adapter.report.comparison import Comparison
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.run_folder import RunRecord

MANY_TASKS_SIZE = 6.2  # points of the numbers in small cells
CELL_HEIGHT = 0.23  # inches
SMALLEST_RANGE = 0.05  # of a signed map, so that noise does not look like a difference


def accuracy_matrix(group: MethodGroup) -> Figure:
    """Heat map of a_{i,j}, over the seeds: a row after each task, a column per task, the frozen model on top."""
    run = group.first
    count = len(run.tasks)
    cell_width, cell_height = min(0.8, 6.6 / count), 0.42 if count < style.MANY_TASKS else 0.27
    width = style.FULL_WIDTH if count >= 6 else 2.8 + count * cell_width
    figure = style.new_figure(1.6 + (count + 1) * cell_height, width)
    axes = figure.subplots()
    scores = np.full((count + 1, count), np.nan)
    scores[0] = [cell["score"] for cell in run.before]
    for index, row in enumerate(group.matrix):
        scores[index + 1, : index + 1] = [np.nan if score is None else score for score in row]
    image = axes.imshow(np.ma.masked_invalid(scores), cmap=style.HEAT_MAP_COLORS, vmin=0, vmax=1, aspect="auto")
    _write_scores(axes, scores, style.TEXT_SIZE if count < style.MANY_TASKS else MANY_TASKS_SIZE)
    for index in range(count):
        axes.add_patch(
            Rectangle((index - 0.5, index + 0.5), 1, 1, fill=False, edgecolor=style.INK, linewidth=1.2, zorder=3)
        )
    labels = [style.task_label(index, name) for index, name in enumerate(run.tasks)]
    style.name_tasks_below(axes, run.tasks)
    axes.set_xticks(range(count), labels)
    axes.set_xlim(-0.52, count - 0.48)
    axes.set_yticks(range(count + 1), ["before training", *(f"after {label}" for label in labels)])
    style.style_axes(axes, grid="both")
    axes.tick_params(labelsize=style.task_text_size(count))
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.axhline(0.5, color="white", linewidth=5)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 8 / (count + 1)), aspect=18, pad=0.02)
    _style_colorbar(bar, "score")
    return figure


def gates_and_atoms(run: RunRecord) -> Figure | None:
    """Open gates per token and the use of every atom, task by task; None for a method without atoms.

    The core atoms, the first ``core_atoms`` of the adapter, stand apart from the elastic ones.
    """
    events = [event for event in run.task_ends if event.get("atom_usage")]
    if not events:
        return None
    usage = np.array([event["atom_usage"] for event in events], dtype=float)  # (tasks, atoms)
    count, atoms = usage.shape
    core, budget = run.adapter_config.get("core_atoms", 0), run.adapter_config.get("expected_active_atoms")
    groups = [("core atoms", 0, core), ("elastic atoms", core, atoms)] if core else [("atoms", 0, atoms)]
    gates = [event.get("expected_active_atoms") for event in events]
    figure = style.new_figure(1.5 + count * (0.36 if count < style.MANY_TASKS else 0.24))
    ratios = [0.3 * atoms, *(end - start for _, start, end in groups)]
    gate_axes, *heat_axes = figure.subplots(1, len(ratios), width_ratios=ratios)
    known = [(row, value) for row, value in enumerate(gates) if value is not None]
    used = [(row, event["active_atoms"]) for row, event in enumerate(events) if event.get("active_atoms") is not None]
    widest = max([value for _, value in known + used] + ([budget] if budget else []), default=1.0) or 1.0
    size = style.task_text_size(count)
    gate_axes.barh(
        [row for row, _ in known], [value for _, value in known], 0.62, color=style.METHOD_COLORS["himalaya"]
    )
    for row, value in known:
        gate_axes.text(widest * 1.45, row, f"{value:.2f}", ha="right", va="center", fontsize=size, color=style.INK)
    gate_axes.plot(
        [value for _, value in used],
        [row for row, _ in used],
        linestyle="none",
        marker="o",
        markersize=4,
        color=style.INK,
        markeredgecolor="white",
    )
    if budget is not None:
        gate_axes.axvline(budget, color=style.BOUND_COLOR, linestyle="dashed", linewidth=1.2)
    gate_axes.set_xlim(0, widest * 1.5)
    gate_axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    gate_axes.set_yticks(range(count), [style.task_label(event["index"], event["task"]) for event in events])
    gate_axes.set_ylim(count - 0.5, -0.5)
    gate_axes.set_title("active atoms a token", fontsize=style.TEXT_SIZE, color=style.INK, loc="left")
    style.style_axes(gate_axes, grid="x")
    gate_axes.tick_params(axis="y", labelsize=size)
    top = usage.max() or 1.0
    for axes, (title, start, end) in zip(heat_axes, groups, strict=True):
        image = axes.imshow(usage[:, start:end], cmap=style.HEAT_MAP_COLORS, vmin=0, vmax=top, aspect="auto")
        axes.set_title(f"{title} ({end - start})", fontsize=style.TEXT_SIZE, color=style.INK, loc="left")
        style.style_axes(axes, x="atom", grid="both")
        axes.grid(visible=False)
        axes.set_xticks(range(0, end - start, 4), [str(atom) for atom in range(start, end, 4)])
        axes.set_yticks([])
    bar = figure.colorbar(image, ax=heat_axes, shrink=min(1.0, 8 / count), aspect=18, pad=0.02)
    _style_colorbar(bar, "share of tokens")
    return figure


def scores_by_method(groups: Sequence[MethodGroup]) -> Figure:
    """Tasks × methods: left a_{T,j}, the score at the end, the frozen model first; right a_{T,j} − a_{j,j}, what
    changed since the task was learnt."""
    run = groups[0].first
    count = len(run.tasks)
    final = [[cell["score"] for cell in group.final] for group in groups]
    learnt = [[cell["score"] for cell in group.after_learning] for group in groups]
    now = np.array([[cell["score"] for cell in run.before], *final]).T  # (tasks, 1 + methods)
    change = (np.array(final) - np.array(learnt)).T
    figure = style.new_figure(2.2 + count * CELL_HEIGHT)
    left, right = figure.subplots(1, 2, width_ratios=[len(groups) + 1, len(groups)])
    image = left.imshow(now, cmap=style.HEAT_MAP_COLORS, vmin=0, vmax=1, aspect="auto")
    _write_scores(left, now, MANY_TASKS_SIZE)
    left.axvline(0.5, color="white", linewidth=4)
    _name_cells(left, run.tasks, ["frozen model", *(group.label for group in groups)], "score now")
    _style_colorbar(figure.colorbar(image, ax=left, location="bottom", shrink=0.5, aspect=24, pad=0.01), "score")
    _signed_map(figure, right, change, "change since it was learnt")
    _name_cells(right, (), [group.label for group in groups], "change since learnt")
    return figure


def task_differences(comparison: Comparison) -> Figure | None:
    """Tasks × methods: the reference's final score minus the other's, framed where it is significant; None if no
    tests could be made."""
    others, tasks = comparison.others, comparison.reference.first.tasks
    if not others:
        return None
    found = [[comparison.difference(other, task) for other in others] for task in tasks]
    figure = style.new_figure(1.9 + len(tasks) * CELL_HEIGHT, min(style.FULL_WIDTH, 4.4 + 0.75 * len(others)))
    axes = figure.subplots()
    gaps = np.array([[difference.test.difference if difference else np.nan for difference in row] for row in found])
    _signed_map(figure, axes, gaps, f"{style.plain(comparison.reference.label)} minus the other")
    for (row, column), _ in np.ndenumerate(gaps):
        difference = found[row][column]
        if difference is not None and difference.significant:
            frame = Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor=style.INK, linewidth=1.3)
            axes.add_patch(frame)
    _name_cells(axes, tasks, [other.label for other in others], "")
    return figure


def _write_scores(axes: Axes, scores: np.ndarray, size: float) -> None:
    for (row, column), score in np.ndenumerate(scores):
        if not np.isnan(score):
            text = f"{score:.2f}" if size > MANY_TASKS_SIZE else f"{score:.2f}".removeprefix("0")
            color = "white" if score > 0.55 else style.INK
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)


def _signed_map(figure: Figure, axes: Axes, values: np.ndarray, label: str) -> None:
    """Signed values between two colours that no colour deficiency confuses, each written into its cell."""
    widest = max(float(np.nanmax(np.abs(values))), SMALLEST_RANGE)
    image = axes.imshow(values, cmap=style.SIGNED_COLORS, vmin=-widest, vmax=widest, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:+.2f}".replace("0.", ".").replace("-", "−") if abs(value) >= 0.005 else "0"
        color = "white" if abs(value) > 0.7 * widest else style.INK
        axes.text(column, row, text, ha="center", va="center", fontsize=MANY_TASKS_SIZE, color=color)
    _style_colorbar(figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=24, pad=0.01), label)


def _name_cells(axes: Axes, tasks: Sequence[str], columns: Sequence[str], title: str) -> None:
    """Task names on the left, method names on top, where a tall figure is read first."""
    style.style_axes(axes, grid="both")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), [style.plain(style.shorten(name)) for name in columns])
    axes.tick_params(axis="x", labelsize=style.SMALL_TEXT_SIZE, length=0)
    for text in axes.get_xticklabels():
        text.set(rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(tasks)), [style.task_label(index, name) for index, name in enumerate(tasks)])
    axes.tick_params(axis="y", labelsize=style.task_text_size(len(tasks)))
    if title:
        axes.set_title(title, fontsize=style.TEXT_SIZE, color=style.INK, loc="left", pad=8)


def _style_colorbar(bar: Colorbar, label: str) -> None:
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=style.TEXT_SIZE, color=style.MUTED_INK)
    bar.ax.tick_params(length=0, labelsize=style.SMALL_TEXT_SIZE, labelcolor=style.INK)
