"""What a comparison says before anything is drawn: methods over their seeds, and paired tests against a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from himalaya_adapter.identity import LABELS
from himalaya_adapter.report.method_groups import MethodGroup, group_by_method
from himalaya_adapter.report.run_folder import REPLAY, RunRecord

PROPOSED = ("himalaya", "himalaya_strict")  # the first of them that is there is compared with the others
SIGNIFICANT = 0.05  # of the p-value after Holm's correction
# What a measure reads of a task's scores from its learning on, if not all of them.
READ = {"average_accuracy": slice(-1, None), "learning_accuracy": slice(1)}
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
        sides: The ids of the runs that are compared: of the reference, and of the method.
        measures: The difference of each measure of the whole stream, by its key.
        tasks: The difference of the final score of each task, by its name.
    """

    group: MethodGroup
    seeds: tuple[int, ...]
    sides: tuple[tuple[str, ...], ...]
    measures: dict[str, Difference] = field(default_factory=dict)
    tasks: dict[str, Difference] = field(default_factory=dict)

    @property
    def run_ids(self) -> set[str]:
        """The runs of both sides."""
        return {run_id for side in self.sides for run_id in side}

    def gap(self, values: Mapping[str, Any]) -> Array:
        """Mean over the runs of the reference minus mean over those of the method; ``values`` by run id."""
        ours, theirs = (np.mean([values[run_id] for run_id in side], axis=0) for side in self.sides)
        return np.asarray(ours - theirs)

    def differing_items(self, scored: Mapping[str, ScoredRun], key: str) -> int:
        """On how many test items the two sides' scores differ, after any task whose row the measure reads."""
        found, read = 0, READ.get(key, slice(None))
        for task in range(len(self.group.first.tasks)):
            columns = {
                run_id: [row[task] for row in scored[run_id].item_scores[task:][read]] for run_id in self.run_ids
            }
            rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
            gaps = [self.gap(items) for items in rows if None not in items.values()]
            found += int(np.any(np.abs(gaps) > ROUNDING, axis=0).sum())
        return found


@dataclass(frozen=True)
class Comparison:
    """Methods that may stand in one table, and the paired tests between them.

    Attributes:
        groups: The methods, in the order in which their runs were given.
        reference: The method that the others are tested against: the first HIMALAYA, else the first
            HIMALAYA_STRICT, else the first; no bound where there is another method.
        rivals: The others, without those of which item scores are missing.
        notes: What could not be tested, and why, and what a number leaves out; a sentence each.
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
    able = [group for group in groups if not group.first.is_bound] or groups
    reference = next((group for method in PROPOSED for group in able if group.method == method), able[0])
    found = {run.run_id: run.scored_items() for run in runs} if len(groups) > 1 else {}
    scored = {run_id: one for run_id, one in found.items() if one is not None}
    notes = []
    if without := [run_id for run_id in found if run_id not in scored]:
        notes.append(f"No item scores are kept of {', '.join(without)}: no paired tests with these runs.")
    earlier = [run.run_id for run in runs if run.environment.get("scoring", 1) < LABELS]
    if 0 < len(earlier) < len(runs):
        notes.append(f"{', '.join(earlier)} chose labels by an earlier rule: classifications compare roughly only.")
    precisions: dict[str, list[str]] = {}
    for run in runs:
        precisions.setdefault(str(run.environment.get("dtype", "not recorded")), []).append(run.run_id)
    if len(precisions) > 1:
        told = "; ".join(f"{dtype}: {', '.join(names)}" for dtype, names in precisions.items())
        notes.append(f"The backbones had different precisions ({told}), which alone moves scores a little.")
    if replayed := [group.label for group in groups if group.first.protocol == REPLAY]:
        notes.append(f"{', '.join(replayed)}: the training items kept are not in the stored bytes.")
    others = [_rival(reference, group) for group in groups if group is not reference]
    rivals = tuple(rival for rival in others if rival.run_ids <= scored.keys())
    rows = reference.first.metrics.get("measured_rows")
    for label in [rival.group.label for rival in rivals if rival.group.first.metrics.get("measured_rows") != rows]:
        notes.append(f"{label} measured other rows of the matrix: no tests of its AUC and forgetting.")
    if rivals:
        _test_measures(rivals, scored, rows)
        _test_tasks(rivals, scored, reference.first.tasks)
    return Comparison(tuple(groups), reference, rivals, tuple(notes))


def _rival(reference: MethodGroup, group: MethodGroup) -> Rival:
    """A method with the runs that are tested: of the seeds that it shares with the reference, or else all."""
    shared = tuple(seed for seed in reference.seeds if seed in group.seeds)
    sides = (
        tuple(run.run_id for run in side.runs if not shared or run.metrics["seed"] in shared)
        for side in (reference, group)
    )
    return Rival(group, shared, tuple(sides))


def _test_measures(rivals: Sequence[Rival], scored: Mapping[str, ScoredRun], rows: Any) -> None:
    """Test the measures of each rival of which the same ``rows`` of the matrix were measured."""
    resampled = dict(zip(scored, resampled_measures([*scored.values()], seed=SEED), strict=True))
    found = []
    for key, measure in MEASURES.items():
        points = {run_id: measure(one.matrix) for run_id, one in scored.items()}
        draws = {run_id: of_run[key] for run_id, of_run in resampled.items()}
        of_rows = key in stream_metrics.keys("of measured rows")
        for rival in rivals:
            if not of_rows or rival.group.first.metrics.get("measured_rows") == rows:
                items = rival.differing_items(scored, key)
                test = bootstrap_test(float(rival.gap(points)), rival.gap(draws), items)
                found.append((rival.measures, key, test))
    _correct(found)


def _test_tasks(rivals: Sequence[Rival], scored: Mapping[str, ScoredRun], tasks: Sequence[str]) -> None:
    found = []
    for index, task in enumerate(tasks):
        # The items' own scores, also where the metric belongs to the whole set: only they can be swapped.
        items = {run_id: np.asarray(one.item_scores[-1][index], np.float64) for run_id, one in scored.items()}
        gaps = np.stack([rival.gap(items) for rival in rivals])
        tests = item_tests(gaps, seed=SEED)
        found += [(rival.tasks, task, test) for rival, test in zip(rivals, tests, strict=True)]
    _correct(found)


def _correct(tests: Sequence[tuple[dict[str, Difference], str, PairedTest]]) -> None:
    """Enter each test where it belongs, with its p-value corrected for all of them."""
    for (place, key, test), p_holm in zip(tests, holm([test.p for *_, test in tests]), strict=True):
        place[key] = Difference(**vars(test), p_holm=p_holm)
