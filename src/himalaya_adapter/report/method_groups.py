"""Runs that differ in nothing but their seed are one method, seen several times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.report.palette import Look, method_looks
from himalaya_adapter.report.run_folder import Cell, RunRecord

SEQUENTIAL = "sequential"  # the protocol of a stream


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the seeds of a method; the deviation is None for a single seed."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class MethodGroup:
    """One method: its runs, one per seed, in the order of the seeds.

    Attributes:
        look: How tables and figures show it. It is called by the method's name, with the first run id where others
            share the name.
        runs: At least one.
    """

    look: Look
    runs: tuple[RunRecord, ...]

    @property
    def label(self) -> str:
        """What it is called."""
        return self.look.label

    @property
    def first(self) -> RunRecord:
        """The run that speaks for what does not differ between seeds: tasks, test items, configuration."""
        return self.runs[0]

    @property
    def method(self) -> str:
        """The adapter's type in lower case, such as ``lora``."""
        return str(self.first.metrics["method"])

    @property
    def is_bound(self) -> bool:
        """Whether it is a bound to compare with (frozen, independent, joint) and no method that learns the stream."""
        return _is_bound(self.first)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, one per run."""
        return tuple(run.metrics["seed"] for run in self.runs)

    def values(self, key: str) -> list[float]:
        """A metric's value of each seed that has it."""
        return [run.metrics[key] for run in self.runs if run.metrics.get(key) is not None]

    def spread(self, key: str) -> Spread | None:
        """A metric over the seeds; None if no seed has it."""
        values = self.values(key)
        return spread(values) if values else None

    def mean_cells(self, cells: Sequence[Sequence[Cell]]) -> list[Cell]:
        """Cells of the tasks over the seeds: the mean score, and the interval between its whiskers.

        A single seed keeps its 95 % interval over test items; with several it is the mean ± their standard deviation.

        Args:
            cells: Of each run, the cells in the order of the tasks.
        """
        if len(self.runs) == 1:
            return list(cells[0])
        return [
            {**of_task[0], **_whiskers("score", [cell["score"] for cell in of_task])}
            for of_task in zip(*cells, strict=True)
        ]

    @property
    def after_learning(self) -> list[Cell]:
        """Each task right after it was learnt, over the seeds."""
        return self.mean_cells([run.after_learning for run in self.runs])

    @property
    def final(self) -> list[Cell]:
        """Each task after the last one, over the seeds."""
        return self.mean_cells([run.final for run in self.runs])

    @property
    def matrix(self) -> list[list[float | None]]:
        """The mean accuracy matrix; None where not every seed measured the cell."""
        matrices = zip(*(run.scores for run in self.runs), strict=True)
        return [
            [None if None in of_cell else fmean(of_cell) for of_cell in zip(*of_row, strict=True)]
            for of_row in matrices
        ]

    def retained_accuracy(self) -> list[dict[str, float]]:
        """Points ``after, mean, low, high`` of the retained accuracy over the seeds, as ``mean_cells``."""
        curves = [run.metrics["retained_accuracy"] for run in self.runs]
        if len(curves) == 1:
            return list(curves[0])
        return [
            {"after": of_row[0]["after"], **_whiskers("mean", [point["mean"] for point in of_row])}
            for of_row in zip(*curves, strict=True)
        ]

    def after_tasks(self, key: str, over_seeds: Callable[[Sequence[float]], float] = fmean) -> list[tuple[int, float]]:
        """What was recorded at the end of each task, over the seeds: ``(tasks learnt, value)``."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            for event in run.task_ends:
                if event.get(key) is not None:
                    found.setdefault(event["index"] + 1, []).append(event[key])
        return [(learnt, over_seeds(values)) for learnt, values in sorted(found.items())]


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def alone(run: RunRecord) -> MethodGroup:
    """A single run as a method of one seed."""
    (group,) = _shown([run.metrics["method_name"]], [[run]])
    return group


def group_by_method(runs: Sequence[RunRecord]) -> list[MethodGroup]:
    """Put runs together whose ``config.yaml`` is the same but for ``training.seed``, ``run_id`` and the search's
    block ``optuna``, of which a run takes nothing.

    A run without a ``config.yaml`` stays alone.

    Returns:
        The methods, in the order in which the runs name them.

    Raises:
        HimalayaError: Two runs are the same method with the same seed, or a ``config.yaml`` is damaged.
    """
    groups: list[tuple[Any, list[RunRecord]]] = []
    for run in runs:
        settings = _settings(run)
        same = next((members for found, members in groups if settings and found == settings), None)
        if same is None:
            groups.append((settings, [run]))
            continue
        twin = next((other for other in same if other.metrics["seed"] == run.metrics["seed"]), None)
        if twin is not None:
            raise HimalayaError(
                f"runs '{twin.run_id}' and '{run.run_id}' are the same method with the same "
                f"training.seed={run.metrics['seed']}; give one of them, or runs of different seeds"
            )
        same.append(run)
    methods = [members for _, members in groups]
    names = [members[0].metrics["method_name"] for members in methods]
    labels = [
        name if names.count(name) == 1 else f"{name} ({members[0].run_id})"
        for name, members in zip(names, methods, strict=True)
    ]
    return _shown(labels, methods)


def _shown(labels: Sequence[str], methods: Sequence[Sequence[RunRecord]]) -> list[MethodGroup]:
    """Methods with their looks; a bound has no method's colour."""
    types = [None if _is_bound(runs[0]) else runs[0].metrics["method"] for runs in methods]
    looks = method_looks(list(zip(labels, types, strict=True)))
    return [
        MethodGroup(look, tuple(sorted(runs, key=lambda run: run.metrics["seed"])))
        for look, runs in zip(looks, methods, strict=True)
    ]


def _is_bound(run: RunRecord) -> bool:
    return bool(run.metrics.get("protocol", SEQUENTIAL) != SEQUENTIAL)


def _settings(run: RunRecord) -> dict[str, Any]:
    """The resolved config without what may differ between the seeds of a method."""
    aside = ("run_id", "training.seed", "optuna.")
    return {key: value for key, value in run.settings.items() if not key.startswith(aside)}


def _whiskers(name: str, values: Sequence[float]) -> dict[str, float]:
    over_seeds = spread(values)
    deviation = over_seeds.deviation or 0.0
    return {name: over_seeds.mean, "low": over_seeds.mean - deviation, "high": over_seeds.mean + deviation}
