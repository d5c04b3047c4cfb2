"""What happened to a run's dictionary: promotions, evictions, dropped steps, and the room left after each task."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from himalaya_adapter.report import style
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.metric_table import format_value
from himalaya_adapter.report.run_folder import RunRecord

TABLE_HEADER = (
    *("Task", "Atoms added", "Own atoms replaced", "Similarity", "Atoms evicted", "Survives", "Steps dropped"),
    *("Free atoms", "Free directions", "Warm start from"),
)
MARKS = {  # label, marker and colour of what the timeline shows
    "added": ("atom added", "o", "#0072B2"),
    "replaced": ("own atom replaced", "D", "#E69F00"),
    "evicted": ("atom of an earlier task evicted", "X", "#D55E00"),
    "dropped": ("step dropped, not finite", "|", style.BOUND_COLOR),
}
MOST_NAMED = 25  # evictions whose share is printed beside their mark


def growth_table(run: RunRecord) -> list[list[str]]:
    """A row of text per task under ``TABLE_HEADER``; no rows for a method without a dictionary and without events."""
    if not (run.events or _has_dictionary(run)):
        return []
    return [
        [
            f"{end['index'] + 1}. {end['task']}",
            str(len(_of_kind(run, "added", end["index"]))),
            str(len(_of_kind(run, "replaced", end["index"]))),
            _mean([event["similarity"] for event in _promotions(run, end["index"])]),
            str(len(_of_kind(run, "evicted", end["index"]))),
            _mean([event["survives"] for event in _events(run, end["index"]) if "survives" in event]),
            str(len(_of_kind(run, "dropped", end["index"]))),
            *(str(end[key]) if end.get(key) is not None else "–" for key in ("free_atoms", "head_directions_left")),
            _start(run, end["index"]),
        ]
        for end in run.task_ends
    ]


def growth_timeline(run: RunRecord) -> Figure | None:
    """Which slot of the dictionary was written when, over the steps of the whole stream; None if none ever was."""
    if not run.events or not _has_dictionary(run):
        return None
    starts = [0, *accumulate(end["steps"] for end in run.task_ends)]
    slots = run.adapter_config.get("elastic_atoms") or 1 + max(event.get("slot", 0) for event in run.events)
    core = run.adapter_config.get("core_atoms", 0)
    figure = style.new_figure(1.6 + 0.13 * min(slots, 24))
    axes = figure.subplots()
    for start in starts[1:-1]:
        axes.axvline(start, color=style.GRID_COLOR, linewidth=1.2)
    for kind, (label, marker, color) in MARKS.items():
        found = [event for end in run.task_ends for event in _of_kind(run, kind, end["index"])]
        if not found:
            continue
        positions = [starts[event["index"]] + event["step"] for event in found]
        rows = [core + event.get("slot", -1) for event in found]
        axes.scatter(positions, rows, s=42, marker=marker, color=color, label=label, zorder=3, clip_on=False)
        for event, x, y in zip(found, positions, rows, strict=True):
            if kind == "evicted" and "survives" in event and len(found) <= MOST_NAMED:
                axes.annotate(
                    f"{event['survives']:.0%}",
                    (x, y),
                    (0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=style.SMALL_TEXT_SIZE,
                    color=style.INK,
                )
    axes.set_ylim(core - 1.8, core + slots - 0.2)
    axes.set_xlim(-0.02 * starts[-1], 1.02 * starts[-1])
    above = axes.secondary_xaxis("top")
    middles = np.add(starts[1:], starts[:-1]) / 2
    above.set_xticks(middles, [str(index + 1) for index in range(len(middles))])
    above.set_xlabel("task", fontsize=style.TEXT_SIZE, color=style.MUTED_INK)
    above.tick_params(length=0, labelsize=style.TEXT_SIZE, labelcolor=style.INK)
    above.spines["top"].set_visible(False)
    style.style_axes(axes, x="training steps since the start of the stream", y="atom")
    style.add_legend(figure, axes)
    return figure


def room_left(groups: Sequence[MethodGroup]) -> Figure | None:
    """Head directions and elastic atoms that later tasks may still take, after each task; None if not recorded."""
    panels = [
        (key, title)
        for key, title in (
            ("head_directions_left", "free directions of the router's head"),
            ("free_atoms", "free atoms of the dictionary"),
        )
        if any(group.after_tasks(key) for group in groups)
    ]
    if not panels:
        return None
    figure = style.new_figure(3.3)
    every = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, (key, title) in zip(every, panels, strict=True):
        most = 0.0
        for group, look in zip(groups, style.method_styles(groups), strict=True):
            points = group.after_tasks(key)
            if points:
                style.draw_line(axes, points, look)
                most = max(most, *(left for _, left in points))
        style.style_axes(axes, x="tasks learnt")
        style.count_tasks_below(axes, len(groups[0].first.tasks))
        axes.set_ylim(0, 1.08 * most or 1.0)
        axes.set_title(title, fontsize=style.TEXT_SIZE, color=style.INK, loc="left")
    if len(groups) > 1:
        style.add_legend(figure, every[0])
    return figure


def _has_dictionary(run: RunRecord) -> bool:
    return any(end.get("free_atoms") is not None for end in run.task_ends)


def _events(run: RunRecord, index: int) -> list[dict[str, Any]]:
    return [event for event in run.events if event.get("index") == index]


def _promotions(run: RunRecord, index: int) -> list[dict[str, Any]]:
    return [event for event in _events(run, index) if event["event"] == "promotion"]


def _of_kind(run: RunRecord, kind: str, index: int) -> list[dict[str, Any]]:
    if kind in ("added", "replaced"):
        return [event for event in _promotions(run, index) if ("evicted" in event) == (kind == "replaced")]
    name = {"evicted": "eviction", "dropped": "skipped_step"}[kind]
    return [event for event in _events(run, index) if event["event"] == name]


def _start(run: RunRecord, index: int) -> str:
    """Which earlier task a task started from, if it did; older events name it by its place among those learnt."""
    starts = [event["from"] for event in _events(run, index) if event["event"] == "warm_start"]
    if not starts:
        return "–"
    names = [end["task"] for end in run.task_ends]
    place = names.index(starts[0]) if isinstance(starts[0], str) else starts[0]
    return f"{place + 1}. {names[place]}"


def _mean(values: Sequence[float]) -> str:
    return format_value(sum(values) / len(values), "score") if values else "–"
