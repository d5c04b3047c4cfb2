"""Figures of what a run costs: loss, stored bytes, norms and time."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from himalaya_adapter.report.charts import XY, Axis, Figure, Heat, Series, Value, drawn, figure, numbered, tasks_axis
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.metric_table import MANY_METHODS
from himalaya_adapter.report.palette import part_looks
from himalaya_adapter.report.run_folder import RunRecord
from himalaya_adapter.stream_metrics import ATOM_NORM_BOUND, Kind, update_norm_bound

SMALLEST_SHARE = 0.01  # of all bytes, below which a part has no line of its own
WIDE_RANGE = 8  # largest by smallest size from which on bytes stand on a logarithmic axis


def loss_curves(groups: Sequence[MethodGroup]) -> Figure | None:
    """The losses of every task over the steps of the stream, a chart for each method; None if none were recorded."""
    lines = [(group, _losses(group.first)) for group in groups]
    known = [loss for _, line in lines for _, loss, _ in line if loss is not None]
    if not known:
        return None
    x, y = Axis("training steps since the start of the stream"), Axis("loss", "score", low=0, high=max(known))
    charts = []
    for group, line in lines:
        if line:
            points, notes = [point[:2] for point in line], tuple(name for _, _, name in line)
            series = drawn(replace(group.look, dash="", marker=""), points, line=True, notes=notes)
            charts.append(XY((series,), x, y, group.label if len(groups) > 1 else ""))
    return replace(figure("loss", *charts), folded=len(charts) >= MANY_METHODS)


def _losses(run: RunRecord) -> list[tuple[Value, Value, str]]:
    """Step, loss and task of every point; after each task an end of the line."""
    points: list[tuple[Value, Value, str]] = []
    start = 0
    for name, end in zip(numbered(run.tasks), run.task_ends, strict=False):
        both = [end[key] for key in ("loss_first", "loss_last") if end.get(key) is not None]
        losses, steps = end.get("losses") or both, end.get("steps", 0)
        points += [(start + steps * (i + 0.5) / len(losses), loss, name) for i, loss in enumerate(losses)]
        points += [(None, None, name)] if losses else []
        start += steps
    return points if start else []


def stored_bytes_by_part(run: RunRecord) -> Figure | None:
    """Stored bytes after each task, together and by part, the largest first; None if not recorded."""
    events = [event for event in run.task_ends if event.get("stored_bytes_by_part")]
    if not events:
        return None
    by_part = [_component_bytes(event["stored_bytes_by_part"]) for event in events]
    largest = {part: max(sizes[part] for sizes in by_part) for sizes in by_part for part in sizes}
    columns = {"all": [sizes.total() for sizes in by_part]}
    columns |= {part: [sizes[part] for sizes in by_part] for part in sorted(largest, key=lambda part: -largest[part])}
    if len(columns) == len(("all", "one part")):
        del columns["all"]
    places = [event["index"] + 1 for event in events]
    series = tuple(
        drawn(look, list(zip(places, sizes, strict=True)), line=True)
        for look, sizes in zip(part_looks(list(columns)), columns.values(), strict=True)
    )
    chart = XY(series, tasks_axis(run.tasks), Axis("stored bytes", "bytes", low=0))
    return figure("stored_bytes", chart)


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


def stored_bytes(groups: Sequence[MethodGroup]) -> Figure | None:
    """Stored bytes after each task, a line per method; None if none recorded them."""
    series = after_tasks(groups, "stored_bytes")
    sizes = [size for one in series for _, size in one.points if size]
    if not sizes:
        return None
    wide = max(sizes) > WIDE_RANGE * min(sizes)
    if wide:  # which nothing has a place on
        series = tuple(drawn(one.look, [point for point in one.points if point[1]], line=True) for one in series)
    y = Axis("stored bytes", "bytes", "log") if wide else Axis("stored bytes", "bytes", low=0)
    chart = XY(series, tasks_axis(groups[0].first.tasks), y)
    return figure("stored_bytes", chart)


def norms(groups: Sequence[MethodGroup]) -> Figure | None:
    """Largest update norm and atom norm seen up to each task, with their bounds; None if none were recorded."""
    bounded = [group for group in groups if group.after_tasks("update_norm_max")]
    if not bounded:
        return None
    bound = max(update_norm_bound(group.first.adapter_config) for group in bounded)
    charts = tuple(
        over_tasks(groups, key, title, "norm", max, bounds=((most, f"bound {most:g}"),))
        for key, title, most in (
            ("update_norm_max", "largest update norm ‖ΔW‖", bound),
            ("atom_norm_max", "largest atom norm", ATOM_NORM_BOUND),
        )
    )
    return figure("norms", *charts)


def seconds_per_task(run: RunRecord) -> Figure:
    """Training time of each task beside that of the evaluation after it: of all tasks so far, or of this one."""
    training, evaluation = part_looks(["training", "evaluation after it"])
    trained = [(e["index"] + 1, e["train_seconds"]) for e in run.task_ends if e.get("train_seconds") is not None]
    evaluated = [(i, sum(cell["seconds"] for cell in row if cell)) for i, row in enumerate(run.rows, start=1)]
    series = (drawn(training, trained, line=True), drawn(evaluation, evaluated, line=True))
    return figure("time", XY(series, tasks_axis(run.tasks, "task"), Axis("time", "seconds", low=0)))


def total_seconds(groups: Sequence[MethodGroup]) -> Figure:
    """Training and evaluation time of each method, over its seeds."""
    series = tuple(
        drawn(look, [(fmean(group.values(key) or [0.0]), row) for row, group in enumerate(groups)])
        for look, key in zip(part_looks(["training", "evaluation"]), ("train_seconds", "eval_seconds"), strict=True)
    )
    names = Axis(scale="names", names=tuple(group.label for group in groups))
    return figure("total_time", XY(series, Axis("time", "seconds", low=0), names))


def use_of_atoms(run: RunRecord) -> Figure | None:
    """The share of tokens that used each atom, task by task; None for a method that does not record it.

    The core atoms, the first ``core_atoms`` of the adapter, stand apart from the elastic ones.
    """
    events = [event for event in run.task_ends if event.get("atom_usage")]
    if not events:
        return None
    usage, core = [event["atom_usage"] for event in events], run.adapter_config.get("core_atoms", 0)
    names = tuple(f"{event['index'] + 1}. {event['task']}" for event in events)
    return figure("atoms", Heat(usage, names, numbered(["atom"] * len(usage[0])), gap=-core))


def over_tasks(
    groups: Sequence[MethodGroup],
    key: str,
    title: str,
    kind: Kind = "count",
    over_seeds: Callable[[Sequence[float]], float] = fmean,
    *,
    low: float | None = None,
    bounds: tuple[tuple[float, str], ...] = (),
) -> XY:
    """What was recorded after each task, a line per method that has it."""
    y = Axis(title, kind, low=low)
    return XY(after_tasks(groups, key, over_seeds), tasks_axis(groups[0].first.tasks), y, title, bounds)


def after_tasks(
    groups: Sequence[MethodGroup], key: str, over_seeds: Callable[[Sequence[float]], float] = fmean
) -> tuple[Series, ...]:
    """The same as series."""
    found = ((group.look, group.after_tasks(key, over_seeds)) for group in groups)
    return tuple(drawn(look, points, line=True) for look, points in found if points)
