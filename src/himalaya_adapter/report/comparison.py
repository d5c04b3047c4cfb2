"""What a comparison says before anything is drawn: methods over their seeds, and paired tests against a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from himalaya_adapter import stream_metrics
from himalaya_adapter.evaluation.intervals import Array
from himalaya_adapter.evaluation.paired_tests import (
    MEASURES,
    PairedTest,
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
Side = list[str]  # run ids of one method


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
    pairs = [(other, *_paired(reference, other)) for other in others]
    pairs = [pair for pair in pairs if {*pair[2], *pair[3]} <= scored.keys()]
    if not pairs:
        return Comparison(tuple(groups), reference, (), tuple(notes))
    points = {
        run_id: {key: measure(one.matrix) for key, measure in MEASURES.items()} for run_id, one in scored.items()
    }
    resampled = dict(zip(scored, resampled_measures([*scored.values()], seed=SEED), strict=True))
    measures: list[dict[str, PairedTest]] = []
    for other, _, ours, theirs in pairs:
        untested: Sequence[str] = ()
        if reference.first.metrics.get("measured_rows") != other.first.metrics.get("measured_rows"):
            untested = stream_metrics.keys("of measured rows")
            notes.append(f"{other.label} measured other rows of the matrix: no tests of its AUC and forgetting.")
        measures.append(
            {
                key: bootstrap_test(float(_gap(points, key, ours, theirs)), _gap(resampled, key, ours, theirs))
                for key in MEASURES
                if key not in untested
            }
        )
    tasks: list[dict[str, PairedTest]] = [{} for _ in pairs]
    for index, task in enumerate(reference.first.tasks):
        # The items' own scores, also where the metric belongs to the whole set: only they can be swapped.
        items = {run_id: {task: np.asarray(one.item_scores[-1][index], np.float64)} for run_id, one in scored.items()}
        gaps = np.stack([_gap(items, task, ours, theirs) for _, _, ours, theirs in pairs])
        for of_pair, test in zip(tasks, item_tests(gaps, seed=SEED), strict=True):
            of_pair[task] = test
    tested = zip(pairs, _corrected(measures), _corrected(tasks), strict=True)
    rivals = tuple(Rival(other, seeds, *differences) for (other, seeds, *_), *differences in tested)
    return Comparison(tuple(groups), reference, rivals, tuple(notes))


def _paired(reference: MethodGroup, other: MethodGroup) -> tuple[tuple[int, ...], Side, Side]:
    """The seeds that both methods have, and the runs that are compared: of these seeds, or else all."""
    shared = tuple(seed for seed in reference.seeds if seed in other.seeds)
    ours, theirs = (
        [run.run_id for run in group.runs if not shared or run.metrics["seed"] in shared]
        for group in (reference, other)
    )
    return shared, ours, theirs


def _gap(values: Mapping[str, Mapping[str, Any]], key: str, ours: Side, theirs: Side) -> Array:
    """Mean over the runs of the reference minus mean over those of the other; ``values`` by run id."""
    mean, other = (np.mean([values[run_id][key] for run_id in side], axis=0) for side in (ours, theirs))
    return np.asarray(mean - other)


def _corrected(families: Sequence[Mapping[str, PairedTest]]) -> list[dict[str, Difference]]:
    adjusted = iter(holm([test.p for of_pair in families for test in of_pair.values()]))
    return [
        {key: Difference(**vars(test), p_holm=next(adjusted)) for key, test in of_pair.items()} for of_pair in families
    ]
