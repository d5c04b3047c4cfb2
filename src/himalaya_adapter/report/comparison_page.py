"""Writes the comparison of several runs: page, tables, and ``aggregated_metrics.json``."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from himalaya_adapter.evaluation.intervals import CONFIDENCE, RESAMPLES
from himalaya_adapter.evaluation.paired_tests import BLOCKS
from himalaya_adapter.report import cost_figures, growth, latex, markdown, score_figures
from himalaya_adapter.report.comparison import Comparison, Difference, compare
from himalaya_adapter.report.method_groups import MethodGroup, spread
from himalaya_adapter.report.metric_table import MANY_METHODS
from himalaya_adapter.report.metric_tables import metric_tables
from himalaya_adapter.report.page import Page
from himalaya_adapter.report.paired_tables import measure_differences, task_differences
from himalaya_adapter.report.run_folder import read_comparable_runs
from himalaya_adapter.report.run_page import shared_facts
from himalaya_adapter.report.run_tables import cpu_latency, data_hashes, environment, evaluation_cost
from himalaya_adapter.report.table import Table
from himalaya_adapter.report.task_tables import task_tables
from himalaya_adapter.storage import write_atomic, write_json
from himalaya_adapter.stream_metrics import METRICS

FORMAT = 2
LONGEST_STEM = 100  # characters; file names end at 255 bytes, and a topic and a suffix follow


def write_comparison(results_dir: Path, run_ids: Sequence[str], output_folder: Path, *, figures: bool = False) -> Path:
    """Compare finished runs of one stream on one backbone; runs that differ in nothing but the seed are one method.

    Writes ``report.html``, ``aggregated_metrics.json``, ``tables.md`` and ``tables.tex`` into ``output_folder``.

    Args:
        results_dir: Folder of the runs.
        run_ids: Names of run folders in it, in the order in which they are shown.
        output_folder: Usually ``results_dir / "comparison"``.
        figures: Also write ``figures/<runs>_<topic>.png`` and ``.pdf``, for papers.

    Returns:
        Path of the page.

    Raises:
        HimalayaError: A run is unknown or unfinished, the runs differ in backbone, stream, tasks or test items, or two
            are the same method with the same seed.
    """
    comparison = compare(read_comparable_runs(results_dir, run_ids))
    write_json(output_folder / "aggregated_metrics.json", _aggregate(comparison))
    write_atomic(output_folder / "tables.md", markdown.document(comparison, comparison_tables(comparison)))
    by_method = comparison_tables(comparison, by_method=True)
    write_atomic(output_folder / "tables.tex", latex.document(by_method, comparison.notes))
    return _page(comparison).write(output_folder, _stem(run_ids) if figures else "")


def comparison_tables(comparison: Comparison, *, by_method: bool | None = None) -> list[Table]:
    """All tables of the results; `metric_tables` says what ``by_method`` does."""
    groups = comparison.groups
    return [
        *metric_tables(groups, by_method=by_method),
        *measure_differences(comparison),
        *task_tables(groups),
        *task_differences(comparison),
    ]


def _page(comparison: Comparison) -> Page:
    groups, runs, first = comparison.groups, comparison.runs, comparison.reference.first
    several, many = len(first.tasks) > 1, len(groups) >= MANY_METHODS
    configs = [(f"Configuration of {g.label} (config.yaml of {g.first.run_id})", g.first.config) for g in groups]
    return Page(
        kind=f"Comparison of {len(groups)} methods, {len(runs)} runs",
        title=f"{' · '.join(group.label for group in groups)} on {first.metrics['stream']}",
        names=[group.look for group in groups],
        facts=[*shared_facts(first), ("Seeds", ", ".join(map(str, sorted({run.metrics["seed"] for run in runs}))))],
        notes=comparison.notes,
        parts=[
            score_figures.retained_accuracy(groups) if several else None,
            *metric_tables(groups),
            score_figures.paired_differences(comparison),
            *measure_differences(comparison),
            score_figures.scores_by_method(groups) if many else score_figures.task_scores(groups),
            *task_tables(groups),
            score_figures.task_differences(comparison),
            *task_differences(comparison),
            score_figures.learning_by_position(groups) if several else None,
            cost_figures.loss_curves(groups),
            cost_figures.stored_bytes(groups),
            cost_figures.norms(groups),
            growth.room_left(groups),
            cost_figures.total_seconds(groups),
            score_figures.accuracy_matrix(groups) if several else None,
            *cpu_latency(runs),
            *evaluation_cost(runs),
            environment(runs),
            data_hashes(first, [first.split]),
        ],
        texts=[(title, config) for title, config in configs if config],
    )


def _stem(run_ids: Sequence[str]) -> str:
    """Names the figures of a comparison after its runs; by a hash of them where the names would be too long."""
    stem = "_vs_".join(run_ids)
    if len(stem.encode()) <= LONGEST_STEM:
        return stem
    return f"{len(run_ids)}_runs_{hashlib.sha256(stem.encode()).hexdigest()[:12]}"


def _aggregate(comparison: Comparison) -> dict[str, Any]:
    first = comparison.reference.first
    return {
        "format": FORMAT,
        "backbone": first.metrics["backbone"],
        "stream": first.metrics["stream"],
        "tasks": list(first.tasks),
        "split": first.split,
        "test_hashes": {task: first.test_hash(task) for task in first.tasks},
        "runs": {run.run_id: run.metrics for run in comparison.runs},
        "methods": [_method(group) for group in comparison.groups],
        "paired_tests": {
            "reference": comparison.reference.label,
            "difference": "reference minus method, on the same test items",
            "confidence": CONFIDENCE,
            "resamples": BLOCKS * RESAMPLES,
            "correction": "Holm over all entries of a list",
            "measures": [_difference(difference) for difference in comparison.measures],
            "tasks": [_difference(difference) for difference in comparison.tasks],
            "notes": list(comparison.notes),
        },
    }


def _method(group: MethodGroup) -> dict[str, Any]:
    return {
        "label": group.label,
        "method": group.method,
        "run_ids": [run.run_id for run in group.runs],
        "seeds": list(group.seeds),
        "metrics": {
            metric.key: asdict(over_seeds)
            for metric in METRICS
            if (over_seeds := group.spread(metric.key)) is not None
        },
        "tasks": [
            {
                "name": task,
                "after_learning": asdict(spread([run.after_learning[index]["score"] for run in group.runs])),
                "final": asdict(spread([run.final[index]["score"] for run in group.runs])),
            }
            for index, task in enumerate(group.first.tasks)
        ],
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "method": difference.other.label,
        "of": difference.of,
        "seeds_in_pairs": list(difference.seeds),
        **asdict(difference.test),
        "p_holm": difference.adjusted_p,
    }
