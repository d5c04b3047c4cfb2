"""Figures of the scores: each function takes methods, each over its seeds.

a_{i,j} is the score on task j after training through task i; a_{0,j} is the score of the frozen model.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from himalaya_adapter.report.charts import XY, Axis, Figure, Heat, Series, figure
from himalaya_adapter.report.comparison import Comparison
from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.palette import FROZEN, Look
from himalaya_adapter.report.run_folder import Cell
from himalaya_adapter.stream_metrics import METRICS

MANY_TASKS = 60  # from here on a figure with a line a task is folded
FROZEN_LOOK = Look("frozen model", FROZEN, "5 2", "_")
SCORE = Axis("score", "score", low=0, high=1)


def learners(groups: Sequence[MethodGroup]) -> Sequence[MethodGroup]:
    """The methods without the protocol ``frozen``, as the frozen model is drawn anyway; all if there is no other."""
    return [group for group in groups if group.first.protocol != "frozen"] or groups


def retained_accuracy(groups: Sequence[MethodGroup]) -> Figure:
    """Mean score over the tasks seen so far, mean_{j≤i} a_{i,j}, against i; the frozen model as a dashed line."""
    run = groups[0].first
    series = [
        Series(group.look, [(cell["after"], *_interval(cell)) for cell in group.retained_accuracy], line=True)
        for group in learners(groups)
    ]
    sums = accumulate(cell["score"] for cell in run.before)
    series.append(Series(FROZEN_LOOK, [(i, total / i) for i, total in enumerate(sums, start=1)], line=True))
    x, y = Axis("tasks learnt", names=run.tasks), Axis("mean score so far", "score")
    return figure("retained_accuracy", XY(series, x, y))


def accuracy_matrix(groups: Sequence[MethodGroup]) -> Figure:
    """A map of a_{i,j} per method, over the seeds: a row after each task, a column per task; frozen on top."""
    run = groups[0].first
    charts = (
        Heat(
            values=[[cell["score"] for cell in run.before], *group.matrix],
            rows=("before training", *(f"after {name}" for name in run.numbered)),
            columns=run.numbered,
            title=group.label,
            framed=[(place + 1, place) for place in range(len(run.tasks))],
            gap=1,
        )
        for group in groups
    )
    return figure("accuracy_matrix", *charts, folded=len(groups) > 1)


def task_scores(group: MethodGroup) -> Figure:
    """Every task of a method: hollow right after learning (a_{j,j}), filled now (a_{T,j}); grey before."""
    run = group.first
    learnt = replace(group.look, label="right after learning")
    series = (
        Series(FROZEN_LOOK, _across(run.before)),
        Series(learnt, [point[:2] for point in _across(group.after_learning)], hollow=True),
        Series(replace(group.look, label="now"), _across(group.final)),
    )
    chart = XY(series, SCORE, Axis(scale="names", names=run.numbered))
    return figure("task_scores", chart, folded=len(run.tasks) > MANY_TASKS)


def scores_by_method(groups: Sequence[MethodGroup]) -> Figure:
    """Tasks × methods: a_{T,j}, the score at the end, the frozen model first; then a_{T,j} − a_{j,j}, what changed."""
    run, groups = groups[0].first, learners(groups)
    final = np.array([[cell["score"] for cell in group.final] for group in groups])
    learnt = np.array([[cell["score"] for cell in group.after_learning] for group in groups])
    before = [cell["score"] for cell in run.before]
    rows, methods = run.numbered, [group.label for group in groups]
    now = Heat(np.array([before, *final]).T.tolist(), rows, ["frozen model", *methods], title="score now", gap=-1)
    change = Heat((final - learnt).T.tolist(), rows, methods, signed=True, title="change since it was learnt")
    return figure("scores_by_method", now, change)


def learning_by_position(groups: Sequence[MethodGroup]) -> Figure:
    """Learning accuracy a_{j,j} against the position j in the stream, and the frozen model's score of that task."""
    run, groups = groups[0].first, learners(groups)
    frozen = Series(FROZEN_LOOK, [(place, cell["score"]) for place, cell in enumerate(run.before, start=1)])
    x = Axis("position of the task in the stream", names=run.tasks)
    y = replace(SCORE, label="score right after learning")
    charts = []
    for group in groups:
        learnt = [(place, *_interval(cell)) for place, cell in enumerate(group.after_learning, start=1)]
        charts.append(XY((frozen, Series(group.look, learnt)), x, y, group.label))
    return figure("learning_by_position", *charts)


def paired_differences(comparison: Comparison) -> Figure | None:
    """The reference minus every other method with its 95 % interval, a chart per measure; None without tests."""
    charts = []
    for metric in METRICS:
        series = [
            Series(rival.group.look, [(one.difference, row, *(one.interval or ()))], hollow=not one.significant)
            for row, rival in enumerate(comparison.rivals)
            if (one := rival.measures.get(metric.key)) is not None
        ]
        side = "← left" if metric.better == "lower" else "right →"
        x = Axis(f"{side}: {comparison.reference.label} is better", "signed")
        y = Axis(scale="names", names=[rival.group.label for rival in comparison.rivals])
        if series:
            charts.append(XY(series, x, y, metric.title, bounds=[(0, "no difference")]))
    return figure("paired_differences", *charts) if charts else None


def _interval(cell: Cell) -> tuple[float, float, float]:
    return cell["score"], cell["low"], cell["high"]


def _across(cells: Sequence[Cell]) -> list[tuple[float, ...]]:
    """Points beside the names of the tasks: the score across, with its interval."""
    return [(cell["score"], row, cell["low"], cell["high"]) for row, cell in enumerate(cells)]
