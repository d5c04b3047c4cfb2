"""Runs that differ in nothing but their seed are one method, seen several times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.identity import digest
from himalaya_adapter.report.palette import Look, method_looks
from himalaya_adapter.report.run_folder import Cell, RunRecord


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

    def over_seeds(self, cells: Sequence[Sequence[Cell]]) -> list[Cell]:
        """Cells over the seeds: the mean score, and the interval between its whiskers.

        A single seed keeps its 95 % interval over test items; with several it is the mean ± their standard deviation.

        Args:
            cells: Of each run, the cells in the same order.
        """
        if len(self.runs) == 1:
            return list(cells[0])
        found = []
        for same in zip(*cells, strict=True):
            mean, deviation = fmean(cell["score"] for cell in same), stdev(cell["score"] for cell in same)
            found.append({**same[0], "score": mean, "low": mean - deviation, "high": mean + deviation})
        return found

    @property
    def after_learning(self) -> list[Cell]:
        """Each task right after it was learnt, over the seeds."""
        return self.over_seeds([run.after_learning for run in self.runs])

    @property
    def final(self) -> list[Cell]:
        """Each task after the last one, over the seeds."""
        return self.over_seeds([run.final for run in self.runs])

    @property
    def retained_accuracy(self) -> list[Cell]:
        """The retained accuracy over the seeds; ``after`` says how many tasks were learnt."""
        curves = [run.metrics["retained_accuracy"] for run in self.runs]
        return self.over_seeds([[{**point, "score": point["mean"]} for point in curve] for curve in curves])

    @property
    def matrix(self) -> list[list[float | None]]:
        """The mean accuracy matrix; None where not every seed measured the cell."""
        matrices = zip(*(run.scores for run in self.runs), strict=True)
        return [
            [None if None in of_cell else fmean(of_cell) for of_cell in zip(*of_row, strict=True)]
            for of_row in matrices
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


def group_by_method(runs: Sequence[RunRecord]) -> list[MethodGroup]:
    """Put runs together that learnt from the same items and whose ``config.yaml`` is the same but for
    ``training.seed``, ``run_id`` and the search's block ``optuna``, of which a run takes nothing.

    A run without a ``config.yaml`` stays alone; a bound has no method's colour.

    Returns:
        The methods, in the order in which the runs name them.

    Raises:
        HimalayaError: Two runs are the same method with the same seed, or a ``config.yaml`` is damaged.
    """
    methods: dict[str, dict[int, RunRecord]] = {}  # by the seeds
    for run in runs:
        seed = run.metrics["seed"]
        twin = methods.setdefault(_identity(run), {}).setdefault(seed, run)
        if twin is not run:
            raise HimalayaError(
                f"runs '{twin.run_id}' and '{run.run_id}' are the same method with the same training.seed={seed}; "
                "give one of them, or runs of different seeds"
            )
    firsts = [next(iter(of_method.values())) for of_method in methods.values()]
    names = _names(firsts)
    labels = [
        name if names.count(name) == 1 else f"{name} ({run.run_id})" for name, run in zip(names, firsts, strict=True)
    ]
    looks = method_looks(
        [(label, None if run.is_bound else run.metrics["method"]) for label, run in zip(labels, firsts, strict=True)]
    )
    return [
        MethodGroup(look, tuple(of_method[seed] for seed in sorted(of_method)))
        for look, of_method in zip(looks, methods.values(), strict=True)
    ]


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """The methods' names; that of a bound says its protocol where it is another's name, too, or the type alone."""
    names = [run.metrics["method_name"] for run in runs]
    return [
        f"{name} ({run.protocol})"
        if run.is_bound and (names.count(name) > 1 or name.lower() == run.metrics["method"])
        else name
        for name, run in zip(names, runs, strict=True)
    ]


def _identity(run: RunRecord) -> str:
    """The training items, and the resolved config without what may differ between the seeds of a method."""
    aside = ("run_id", "training.seed", "optuna.")
    settings = {key: value for key, value in run.settings.items() if not key.startswith(aside)}
    learnt = [run.environment["data_hashes"][task].get("train") for task in run.tasks]
    return digest([settings, learnt]) if settings else run.run_id
