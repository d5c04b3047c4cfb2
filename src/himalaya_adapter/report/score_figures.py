"""Figures of the scores: each function takes methods, each over its seeds.

a_{i,j} is the score on task j after training through task i; a_{0,j} is the score of the frozen model.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from himalaya_adapter.report.charts import (
    XY,
    Axis,
    Figure,
    Heat,
    Series,
    drawn,
    figure,
    hollow,
    interval,
    numbered,
    tasks_axis,
)
from himalaya_adapter.report.comparison import Comparison
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.metric_table import MANY_METHODS, format_interval
from himalaya_adapter.report.palette import FROZEN, Look
from himalaya_adapter.report.run_folder import Cell
from himalaya_adapter.stream_metrics import METRICS

MANY_TASKS = 60  # from here on a map holds scores without their intervals, and a figure with a line a task is folded
SPREAD = 0.7  # of the height of a task's line that its methods take
WHISKERS = "Bands and whiskers are 95 % intervals over test items."
SEEDED_WHISKERS = (
    "Bands and whiskers are ± one standard deviation over seeds; of a method with a single seed, its 95 % interval "
    "over test items."
)
FROZEN_LOOK = Look("frozen model", FROZEN, "5 2", "dash")
SCORE = Axis("score", "score", low=0, high=1)


def whiskers(groups: Sequence[MethodGroup]) -> str:
    """What the intervals of these methods are."""
    return SEEDED_WHISKERS if any(len(group.runs) > 1 for group in groups) else WHISKERS


def learners(groups: Sequence[MethodGroup]) -> Sequence[MethodGroup]:
    """The methods without the protocol ``frozen``, as the frozen model is drawn anyway; all if there is no other."""
    return [group for group in groups if group.first.metrics.get("protocol") != "frozen"] or groups


def retained_accuracy(groups: Sequence[MethodGroup]) -> Figure:
    """Mean score over the tasks seen so far, mean_{j≤i} a_{i,j}, against i; the frozen model as a dashed line."""
    run, groups = groups[0].first, learners(groups)
    series = [
        drawn(group.look, [(p["after"], p["mean"], p["low"], p["high"]) for p in group.retained_accuracy()], line=True)
        for group in groups
    ]
    sums = accumulate(cell["score"] for cell in run.before)
    series.append(drawn(FROZEN_LOOK, [(i, total / i) for i, total in enumerate(sums, start=1)], line=True))
    y = Axis("mean score so far", "score")
    chart = XY(tuple(series), tasks_axis(run.tasks), y)
    return figure("retained_accuracy", chart, also=whiskers(groups))


def accuracy_matrix(groups: Sequence[MethodGroup]) -> Figure:
    """A map of a_{i,j} per method, over the seeds: a row after each task, a column per task, the frozen model on top.

    A single run's has the intervals, too.
    """
    run, names = groups[0].first, numbered(groups[0].first.tasks)
    alone = len(groups) == 1
    notes: list[list[str]] = []
    if alone and len(names) <= MANY_TASKS:
        rows: list[list[Cell | None]] = [list(run.before), *run.rows]
        notes = [[format_interval((cell["low"], cell["high"])) if cell else "" for cell in row] for row in rows]
    charts = (
        Heat(
            values=[[cell["score"] for cell in run.before], *group.matrix],
            rows=("before training", *(f"after {name}" for name in names)),
            columns=names,
            title="" if alone else group.label,
            framed=tuple((place + 1, place) for place in range(len(names))),
            notes=notes,
            gap=1,
        )
        for group in groups
    )
    return replace(figure("accuracy_matrix", *charts), folded=not alone)


def task_scores(groups: Sequence[MethodGroup]) -> Figure:
    """Every task of a few methods: hollow right after learning (a_{j,j}), filled now (a_{T,j}); grey before."""
    run = groups[0].first
    series: list[Series] = [drawn(FROZEN_LOOK, _beside(run.before, 0))]
    for index, group in enumerate(groups):
        look = group.look
        place = (index - (len(groups) - 1) / 2) * SPREAD / len(groups)
        learnt = [point[:2] for point in _beside(group.after_learning, place)]
        series += [drawn(hollow(look, f"{look.label}, right after learning"), learnt, hollow=True)]
        series += [drawn(hollow(look, f"{look.label}, now"), _beside(group.final, place))]
    chart = XY(tuple(series), SCORE, Axis(scale="names", names=numbered(run.tasks)))
    return replace(figure("task_scores", chart, also=whiskers(groups)), folded=len(run.tasks) > MANY_TASKS)


def scores_by_method(groups: Sequence[MethodGroup]) -> Figure:
    """Tasks × methods: a_{T,j}, the score at the end, the frozen model first; then a_{T,j} − a_{j,j}, what changed."""
    run, groups = groups[0].first, learners(groups)
    final = np.array([[cell["score"] for cell in group.final] for group in groups])
    learnt = np.array([[cell["score"] for cell in group.after_learning] for group in groups])
    before = [cell["score"] for cell in run.before]
    rows, methods = numbered(run.tasks), tuple(group.label for group in groups)
    now = Heat(np.array([before, *final]).T.tolist(), rows, ("frozen model", *methods), title="score now", gap=-1)
    change = Heat((final - learnt).T.tolist(), rows, methods, signed=True, title="change since it was learnt")
    return figure("scores_by_method", now, change)


def learning_by_position(groups: Sequence[MethodGroup]) -> Figure:
    """Learning accuracy a_{j,j} against the position j in the stream, and the frozen model's score of that task.

    Many methods have a chart each.
    """
    run, groups = groups[0].first, learners(groups)
    frozen = drawn(FROZEN_LOOK, [(place, cell["score"]) for place, cell in enumerate(run.before, start=1)])
    learnt = [
        drawn(
            hollow(group.look, group.label),
            [(j, *interval(cell)) for j, cell in enumerate(group.after_learning, start=1)],
        )
        for group in groups
    ]
    many = len(groups) >= MANY_METHODS
    x = tasks_axis(run.tasks, "position of the task in the stream")
    y = Axis("score right after learning", "score", low=0, high=1)
    charts = [XY((frozen, one), x, y, one.look.label) for one in learnt] if many else [XY((frozen, *learnt), x, y)]
    return figure("learning_by_position", *charts, also=whiskers(groups))


def paired_differences(comparison: Comparison) -> Figure | None:
    """The reference minus every other method with its 95 % interval, a chart per measure; None without tests."""
    others = comparison.others
    charts = []
    for metric in METRICS:
        found = [(row, comparison.difference(other, metric.key)) for row, other in enumerate(others)]
        series = tuple(
            drawn(one.other.look, [(one.test.difference, row, one.test.low, one.test.high)], hollow=clear)
            for row, one in found
            if one is not None
            for clear in [not one.significant]
        )
        side = "← left" if metric.better == "lower" else "right →"
        x = Axis(f"{side}: {comparison.reference.label} is better", "signed")
        y = Axis(scale="names", names=tuple(other.label for other in others))
        if series:
            charts.append(XY(series, x, y, metric.title, bounds=((0, "no difference"),)))
    return figure("paired_differences", *charts) if charts else None


def task_differences(comparison: Comparison) -> Figure | None:
    """Tasks × methods: the reference's final score minus the other's, framed where it is significant; None if no
    tests could be made."""
    others, tasks = comparison.others, comparison.reference.first.tasks
    if not others:
        return None
    found = [[comparison.difference(other, task) for other in others] for task in tasks]
    chart = Heat(
        [[one.test.difference if one else None for one in row] for row in found],
        numbered(tasks),
        tuple(other.label for other in others),
        signed=True,
        title=f"{comparison.reference.label} minus the other",
        framed=tuple((i, j) for i, row in enumerate(found) for j, one in enumerate(row) if one and one.significant),
    )
    return figure("task_differences", chart)


def _beside(cells: Sequence[Cell], place: float) -> list[tuple[float, ...]]:
    """Points beside the names of the tasks: the score across, with its interval."""
    return [(cell["score"], row + place, cell["low"], cell["high"]) for row, cell in enumerate(cells)]
