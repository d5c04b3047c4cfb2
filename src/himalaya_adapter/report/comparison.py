"""What a comparison says before anything is drawn: methods over their seeds, and paired tests against a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from himalaya_adapter import stream_metrics
from himalaya_adapter.evaluation.intervals import Array
from himalaya_adapter.evaluation.paired_tests import (
    MEASURES,
    ROUNDING,
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
class Difference(PairedTest):
    """The reference minus another method, with the p-value after Holm's correction over the table it stands in."""

    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is at most 0.05."""
        return self.p_holm <= SIGNIFICANT


@dataclass(frozen=True)
class Rival:
    """A method that the reference is tested against.

    Attributes:
        group: The method.
        seeds: The seeds that both have and that are compared in pairs; empty if they share none, and the mean over
            the seeds of one is compared with that of the other.
        measures: The difference of each measure of the whole stream, by its key.
        tasks: The difference of the final score of each task, by its name.
    """

    group: MethodGroup
    seeds: tuple[int, ...]
    measures: dict[str, Difference]
    tasks: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """Methods that may stand in one table, and the paired tests between them.

    Attributes:
        groups: The methods, in the order in which their runs were given.
        reference: The method that the others are tested against: the first HIMALAYA, else the first
            HIMALAYA_STRICT, else the first.
        rivals: The others, without those of which item scores are missing.
        notes: What could not be tested, and why; a sentence each.
    """

    groups: tuple[MethodGroup, ...]
    reference: MethodGroup
    rivals: tuple[Rival, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, method by method."""
        return [run for group in self.groups for run in group.runs]


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Group runs over their seeds and test every method against the reference on the same test items.

    Raises:
        HimalayaError: Two runs are the same method with the same seed, or a run's item scores are damaged.
    """
    groups = group_by_method(runs)
    reference = next((group for method in PROPOSED for group in groups if group.method == method), groups[0])
    found = {run.run_id: run.scored_items() for run in runs} if len(groups) > 1 else {}
    scored = {run_id: one for run_id, one in found.items() if one is not None}
    notes = []
    if without := [run_id for run_id in found if run_id not in scored]:
        notes.append(f"No item scores are kept of {', '.join(without)}: no paired tests with these runs.")
    earlier = [run.run_id for run in runs if run.environment.get("scoring", 1) < SCORING]
    if 0 < len(earlier) < len(runs):
        notes.append(f"{', '.join(earlier)} chose labels by an earlier rule: classifications compare roughly only.")
    others = [group for group in groups if group is not reference]
    pairs = [pair for other in others if (pair := _paired(reference, other)).names <= scored.keys()]
    if not pairs:
        return Comparison(tuple(groups), reference, (), tuple(notes))
    rows = reference.first.metrics.get("measured_rows")
    for label in [pair.other.label for pair in pairs if pair.other.first.metrics.get("measured_rows") != rows]:
        notes.append(f"{label} measured other rows of the matrix: no tests of its AUC and forgetting.")
    measures, tasks = _measure_tests(pairs, scored, rows), _task_tests(pairs, scored, reference.first.tasks)
    tested = zip(pairs, _corrected(measures), _corrected(tasks), strict=True)
    rivals = tuple(Rival(pair.other, pair.seeds, *differences) for pair, *differences in tested)
    return Comparison(tuple(groups), reference, rivals, tuple(notes))


@dataclass(frozen=True)
class _Pair:
    """The ids of the runs that are tested against each other: of the seeds that both methods have, or else all."""

    other: MethodGroup
    seeds: tuple[int, ...]
    sides: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> set[str]:
        return {run_id for side in self.sides for run_id in side}

    def gap(self, values: Mapping[str, Any]) -> Array:
        """Mean over the runs of the reference minus mean over those of the other; ``values`` by run id."""
        ours, theirs = (np.mean([values[run_id] for run_id in side], axis=0) for side in self.sides)
        return np.asarray(ours - theirs)

    def differing_items(self, scored: Mapping[str, ScoredRun]) -> int:
        """On how many test items the two sides' scores differ, after any task."""
        found = 0
        for task in range(len(self.other.first.tasks)):
            columns = {run_id: [row[task] for row in scored[run_id].item_scores[task:]] for run_id in self.names}
            rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
            gaps = [self.gap(items) for items in rows if None not in items.values()]
            found += int(np.any(np.abs(gaps) > ROUNDING, axis=0).sum())
        return found


def _paired(reference: MethodGroup, other: MethodGroup) -> _Pair:
    shared = tuple(seed for seed in reference.seeds if seed in other.seeds)
    sides = (
        tuple(run.run_id for run in group.runs if not shared or run.metrics["seed"] in shared)
        for group in (reference, other)
    )
    return _Pair(other, shared, tuple(sides))


def _measure_tests(pairs: Sequence[_Pair], scored: Mapping[str, ScoredRun], rows: Any) -> list[dict[str, PairedTest]]:
    """Of each pair the tests of the measures, where the same ``rows`` of the matrix were measured of all of them."""
    resampled = dict(zip(scored, resampled_measures([*scored.values()], seed=SEED), strict=True))
    differing = [pair.differing_items(scored) for pair in pairs]
    found: list[dict[str, PairedTest]] = [{} for _ in pairs]
    for key, measure in MEASURES.items():
        points = {run_id: measure(one.matrix) for run_id, one in scored.items()}
        draws = {run_id: of_run[key] for run_id, of_run in resampled.items()}
        of_rows = key in stream_metrics.keys("of measured rows")
        for pair, items, tests in zip(pairs, differing, found, strict=True):
            if not of_rows or pair.other.first.metrics.get("measured_rows") == rows:
                tests[key] = bootstrap_test(float(pair.gap(points)), pair.gap(draws), items)
    return found


def _task_tests(
    pairs: Sequence[_Pair], scored: Mapping[str, ScoredRun], tasks: Sequence[str]
) -> list[dict[str, PairedTest]]:
    found: list[dict[str, PairedTest]] = [{} for _ in pairs]
    for index, task in enumerate(tasks):
        # The items' own scores, also where the metric belongs to the whole set: only they can be swapped.
        items = {run_id: np.asarray(one.item_scores[-1][index], np.float64) for run_id, one in scored.items()}
        gaps = np.stack([pair.gap(items) for pair in pairs])
        for tests, test in zip(found, item_tests(gaps, seed=SEED), strict=True):
            tests[task] = test
    return found


def _corrected(families: Sequence[Mapping[str, PairedTest]]) -> list[dict[str, Difference]]:
    adjusted = iter(holm([test.p for of_pair in families for test in of_pair.values()]))
    return [
        {key: Difference(**vars(test), p_holm=next(adjusted)) for key, test in of_pair.items()} for of_pair in families
    ]
