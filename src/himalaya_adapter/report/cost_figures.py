"""Figures of what a run costs: loss, stored bytes, norms, time, and the room that is left."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from himalaya_adapter.report.charts import XY, Axis, Figure, Heat, Point, Series, figure
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.run_folder import RunRecord
from himalaya_adapter.stream_metrics import METRICS, Kind

MANY = 4  # charts; a figure with more is folded
# Topic of the figure, key of the event, title of the chart.
OVER_TASKS: tuple[tuple[str, str, str, Kind], ...] = (
    ("room_left", "head_directions_left", "free directions of the router's head", "count"),
    ("room_left", "free_atoms", "free slots", "count"),
    ("norms", "update_norm_max", "largest update norm ‖ΔW‖", "norm"),
    ("norms", "atom_norm_max", "largest atom norm", "norm"),
    ("stored_bytes", "stored_bytes", "stored bytes", "bytes"),
    ("time", "train_seconds", "training time of the task", "seconds"),
)


def loss_curves(groups: Sequence[MethodGroup]) -> Figure | None:
    """The losses of every task over the steps of the stream, a chart for each method; None if none were recorded."""
    charts = []
    for group in groups:
        points, notes = _losses(group.first)
        if points:
            series = Series(replace(group.look, dash="", marker=""), points, line=True, notes=notes)
            x, y = Axis("training steps since the start of the stream"), Axis("loss", "score", low=0)
            charts.append(XY([series], x, y, group.label))
    return figure("loss", *charts, folded=len(charts) > MANY) if charts else None


def _losses(run: RunRecord) -> tuple[list[Point], list[str]]:
    """Step and loss of every point, and its task; after each task an end of the line."""
    points, notes, start = list[Point](), list[str](), 0
    for name, end in zip(run.numbered, run.task_ends, strict=False):
        losses, steps = end.get("losses") or [], end.get("steps", 0)
        points += [(start + steps * (i + 0.5) / len(losses), loss) for i, loss in enumerate(losses)]
        points += [(None, None)] if losses else []
        notes += [name] * (len(points) - len(notes))
        start += steps
    return points, notes


def after_each_task(groups: Sequence[MethodGroup]) -> list[Figure]:
    """What was recorded after each task, a line per method that has it: the mean of its seeds, or the largest norm."""
    x = Axis("tasks learnt", names=groups[0].first.tasks)
    charts: dict[str, list[XY]] = {}
    for topic, key, title, kind in OVER_TASKS:
        found = {group.look: group.after_tasks(key, max if kind == "norm" else fmean) for group in groups}
        series = [Series(look, points, line=True) for look, points in found.items() if points]
        limits = [metric.bound for metric in METRICS if metric.key == key and metric.bound]
        bounds = {limit(group.first.adapter_config) for limit in limits for group in groups if found[group.look]}
        y = Axis(title, kind, low=None if kind == "norm" else 0)
        if series:
            chart = XY(series, x, y, title, [(bound, f"{title}: at most {bound:g}") for bound in sorted(bounds)])
            charts.setdefault(topic, []).append(chart)
    return [figure(topic, *of_topic) for topic, of_topic in charts.items()]


def use_of_atoms(run: RunRecord) -> Figure | None:
    """The share of tokens that used each atom, task by task; None for a method that does not record it.

    The core atoms, the first ``core_atoms`` of the adapter, stand apart from the elastic ones.
    """
    events = [event for event in run.task_ends if event.get("atom_usage")]
    if not events:
        return None
    usage, core = [event["atom_usage"] for event in events], run.adapter_config.get("core_atoms", 0)
    names = [f"{event['index'] + 1}. {event['task']}" for event in events]
    return figure("atoms", Heat(usage, names, [f"{i}. atom" for i in range(1, len(usage[0]) + 1)], gap=-core))
