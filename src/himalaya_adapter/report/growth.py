"""What happened to a run's dictionary: what was written where, dropped steps, and the room left after each task."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from himalaya_adapter.report.charts import XY, Axis, Figure, drawn, figure
from himalaya_adapter.report.cost_figures import over_tasks
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.metric_table import format_value
from himalaya_adapter.report.palette import part_looks
from himalaya_adapter.report.run_folder import RunRecord
from himalaya_adapter.report.table import LONG, Table, Text, numbers, table, words

Event = dict[str, Any]
KINDS: dict[str, Callable[[Event], bool]] = {
    "atom added": lambda event: event["event"] == "promotion" and "evicted" not in event,
    "own atom replaced": lambda event: event["event"] == "promotion" and "evicted" in event,
    "slot shared": lambda event: event["event"] == "sharing",
    "slot of an earlier task evicted": lambda event: event["event"] == "eviction",
    "step dropped, not finite": lambda event: event["event"] == "skipped_step",
}
ROOMS = (("head_directions_left", "free directions of the router's head"), ("free_atoms", "free slots"))


def growth_table(run: RunRecord) -> list[Table]:
    """What happened in each task; columns without content are left out, and a table without events."""
    if not (run.events or _has_dictionary(run)):
        return []
    columns: dict[str, list[str]] = {name: [] for name in KINDS}
    others = ("similarity", "survives", "free slots", "free directions", "warm start from")
    columns |= {name: [] for name in others}
    for end in run.task_ends:
        events = [event for event in run.events if event.get("index") == end["index"]]
        for name, is_kind in KINDS.items():
            columns[name].append(str(sum(map(is_kind, events))))
        for key in others[:2]:
            columns[key].append(_mean([event[key] for event in events if event.get(key) is not None]))
        for name, key in zip(others[2:4], ("free_atoms", "head_directions_left"), strict=True):
            columns[name].append(str(end[key]) if end.get(key) is not None else "–")
        columns[others[4]].append(_start(run, events))
    shown = {name: texts for name, texts in columns.items() if set(texts) - {"0", "–"}}
    rows = tuple(
        (*words(f"{end['index'] + 1}. {end['task']}"), *numbers(*(texts[place] for texts in shown.values())))
        for place, end in enumerate(run.task_ends)
    )
    header = (*words("task"), *(Text(name) for name in shown))
    return [table("events", header, rows, folded=len(rows) > LONG)] if shown else []


def growth_timeline(run: RunRecord) -> Figure | None:
    """Which slot of the dictionary was written when, over the steps of the whole stream; None if none ever was."""
    if not run.events or not _has_dictionary(run):
        return None
    starts = {end["index"]: start for start, end in zip(_starts(run), run.task_ends, strict=False)}
    series = []
    for look, is_kind in zip(part_looks(list(KINDS)), KINDS.values(), strict=True):
        found = [event for event in run.events if is_kind(event) and event.get("index") in starts]
        points = [(starts[event["index"]] + event["step"], event.get("slot", -1)) for event in found]
        notes = tuple(f"{event['index'] + 1}. {event['task']}{_survives(event)}" for event in found)
        series += [drawn(look, points, notes=notes)] if points else []
    if not series:
        return None
    x = Axis("training steps since the start of the stream", low=0, high=_starts(run)[-1])
    return figure("growth", XY(tuple(series), x, Axis("slot", low=-1)))


def room_left(groups: Sequence[MethodGroup]) -> Figure | None:
    """Directions and slots that later tasks may still take, after each task; None if not recorded."""
    charts = tuple(over_tasks(groups, key, title, low=0) for key, title in ROOMS)
    charts = tuple(chart for chart in charts if chart.series)
    return figure("room_left", *charts) if charts else None


def _has_dictionary(run: RunRecord) -> bool:
    return any(end.get("free_atoms") is not None for end in run.task_ends)


def _starts(run: RunRecord) -> list[int]:
    """The step at which each task starts, and at which the stream ends."""
    return [0, *accumulate(end["steps"] for end in run.task_ends)]


def _survives(event: Event) -> str:
    return f", {event['survives']:.0%} survives" if event.get("survives") is not None else ""


def _start(run: RunRecord, events: Sequence[Event]) -> str:
    """Which earlier task a task started from, if it did; older events name it by its place among those learnt."""
    starts = [event["from"] for event in events if event["event"] == "warm_start"]
    if not starts:
        return "–"
    names = [end["task"] for end in run.task_ends]
    place = names.index(starts[0]) if isinstance(starts[0], str) else starts[0]
    return f"{place + 1}. {names[place]}"


def _mean(values: Sequence[float]) -> str:
    return format_value(sum(values) / len(values), "score") if values else "–"
