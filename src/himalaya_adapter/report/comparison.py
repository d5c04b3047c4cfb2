"""What a comparison says before anything is drawn: methods over their seeds, and paired tests against a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from himalaya_adapter import stream_metrics
from himalaya_adapter.evaluation.intervals import Array
from himalaya_adapter.evaluation.paired_tests import (
    MEASURES,
    PairedTest,
    ScoredRun,
    bootstrap_test,
    holm,
    item_tests,
    resampled_measures,
)
from himalaya_adapter.identity import SCORING
from himalaya_adapter.report.method_groups import MethodGroup, group_by_method
from himalaya_adapter.report.run_folder import RunRecord

PROPOSED = ("himalaya", "himalaya_strict")  # the first of them that is there is compared with the others
SIGNIFICANT = 0.05  # of the p-value after Holm's correction
SEED = 0  # of the resampling, so that the same runs always give the same page


@dataclass(frozen=True)
class Difference:
    """The reference minus another method, of one measure or of the final score of one task.

    Attributes:
        other: The other method.
        of: Key of the measure or name of the task.
        seeds: The seeds that both have and that are compared in pairs; empty if they share none, and the mean over
            the seeds of one is compared with that of the other.
        test: The difference, its interval and its p-value.
        adjusted_p: The p-value after Holm's correction over the table that it stands in.
    """

    other: MethodGroup
    of: str
    seeds: tuple[int, ...]
    test: PairedTest
    adjusted_p: float

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is at most 0.05."""
        return self.adjusted_p <= SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """Methods that may stand in one table, and the paired tests between them.

    Attributes:
        groups: The methods, in the order in which their runs were given.
        reference: The method that the others are tested against: the first HIMALAYA, else the first
            HIMALAYA_STRICT, else the first.
        measures: Differences of the measures of the whole stream; none where item scores are missing.
        tasks: Differences of the final score of each task.
        notes: What could not be tested, and why; a sentence each.
    """

    groups: tuple[MethodGroup, ...]
    reference: MethodGroup
    measures: tuple[Difference, ...]
    tasks: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, method by method."""
        return [run for group in self.groups for run in group.runs]

    @property
    def others(self) -> list[MethodGroup]:
        """The methods that are tested against the reference, those with a test only."""
        tested = [difference.other for difference in self.tasks]
        return [group for group in self.groups if any(group is other for other in tested)]

    def difference(self, other: MethodGroup, of: str) -> Difference | None:
        """The difference from ``other`` of a measure or a task; None if it was not tested."""
        found = (d for d in (*self.measures, *self.tasks) if d.other is other and d.of == of)
        return next(found, None)


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Group runs over their seeds and test every method against the reference on the same test items.

    Raises:
        HimalayaError: Two runs are the same method with the same seed, or a run's item scores are damaged.
    """
    groups = group_by_method(runs)
    proposed = [group for method in PROPOSED for group in groups if group.method == method]
    reference = (proposed or groups)[0]
    scored = {run.run_id: run.scored_items() for run in runs} if len(groups) > 1 else {}
    without = [run_id for run_id, found in scored.items() if found is None]
    kept = {run_id: found for run_id, found in scored.items() if found is not None}
    notes = []
    if without:
        notes.append(f"No item scores are kept of {', '.join(without)}: no paired tests with these runs.")
    earlier = [run.run_id for run in runs if run.environment.get("scoring", 1) < SCORING]
    if 0 < len(earlier) < len(runs):
        notes.append(f"{', '.join(earlier)} chose labels by an earlier rule: classifications compare roughly only.")
    pairs = [
        pair
        for pair in (_pair(reference, other) for other in groups if other is not reference)
        if all(run.run_id in kept for run in pair.runs)
    ]
    names = list(dict.fromkeys(run.run_id for pair in pairs for run in pair.runs))
    points = {name: {key: measure(kept[name].matrix) for key, measure in MEASURES.items()} for name in names}
    resampled = dict(zip(names, resampled_measures([kept[n] for n in names], seed=SEED), strict=True)) if names else {}
    measures = []
    for pair in pairs:
        untested: Sequence[str] = ()
        if pair.ours[0].metrics.get("measured_rows") != pair.theirs[0].metrics.get("measured_rows"):
            untested = stream_metrics.keys("of measured rows")
            notes.append(f"{pair.other.label} measured other rows of the matrix: no tests of its AUC and forgetting.")
        for key in MEASURES:
            if key not in untested:
                point = _gap({name: points[name][key] for name in names}, pair.ours, pair.theirs)
                draws = _gap({name: resampled[name][key] for name in names}, pair.ours, pair.theirs)
                test = bootstrap_test(float(point), draws)
                measures.append(Difference(pair.other, key, pair.seeds, test, test.p))
    return Comparison(
        groups=tuple(groups),
        reference=reference,
        measures=_corrected(measures),
        tasks=_corrected(_task_differences(pairs, kept)),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Pair:
    """The runs that are tested against each other: of the seeds that both methods have, else all of both."""

    other: MethodGroup
    ours: tuple[RunRecord, ...]
    theirs: tuple[RunRecord, ...]
    seeds: tuple[int, ...]

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        return *self.ours, *self.theirs


def _pair(reference: MethodGroup, other: MethodGroup) -> _Pair:
    shared = tuple(seed for seed in reference.seeds if seed in other.seeds)
    ours, theirs = (
        tuple(run for run in group.runs if not shared or run.metrics["seed"] in shared) for group in (reference, other)
    )
    return _Pair(other, ours, theirs, shared)


def _gap(values: Mapping[str, Array | float], ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> Array:
    """Mean over the runs of the reference minus mean over those of the other; ``values`` by run id."""
    means = [np.mean(np.array([values[run.run_id] for run in runs]), axis=0) for runs in (ours, theirs)]
    return np.asarray(means[0] - means[1])


def _task_differences(pairs: Sequence[_Pair], kept: Mapping[str, ScoredRun]) -> list[Difference]:
    if not pairs:
        return []
    tasks = pairs[0].ours[0].tasks
    found = []
    for index, task in enumerate(tasks):
        # The items' own scores, also where the metric belongs to the whole set: only they can be swapped.
        items = {run_id: np.asarray(run.item_scores[-1][index], np.float64) for run_id, run in kept.items()}
        gaps = np.stack([_gap(items, pair.ours, pair.theirs) for pair in pairs])
        for pair, test in zip(pairs, item_tests(gaps, seed=SEED), strict=True):
            found.append(Difference(pair.other, task, pair.seeds, test, test.p))
    return found


def _corrected(family: Sequence[Difference]) -> tuple[Difference, ...]:
    adjusted = holm([difference.test.p for difference in family])
    return tuple(replace(difference, adjusted_p=p) for difference, p in zip(family, adjusted, strict=True))
