"""Writes the comparison of several runs: page, tables, figures and ``aggregated_metrics.json``."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from himalaya_adapter.evaluation.intervals import CONFIDENCE, RESAMPLES
from himalaya_adapter.evaluation.paired_tests import BLOCKS
from himalaya_adapter.report import latex, markdown
from himalaya_adapter.report.comparison import Comparison, Difference, compare
from himalaya_adapter.report.comparison_tables import comparison_tables
from himalaya_adapter.report.html import HASH_DIGITS, NOT_OF_THE_MACHINE, Picture, picture, render
from himalaya_adapter.report.method_groups import MethodGroup, spread
from himalaya_adapter.report.run_folder import RunRecord, read_comparable_runs
from himalaya_adapter.report.sections import comparison_sections
from himalaya_adapter.report.style import method_styles
from himalaya_adapter.report.table import Table
from himalaya_adapter.storage import write_atomic, write_json
from himalaya_adapter.stream_metrics import METRICS

FORMAT = 2
LONGEST_STEM = 100  # characters; file names end at 255 bytes, and a topic and a suffix follow
# Figures and tables in the order in which a reader asks; what is not named follows in its own order.
TABLES_ABOVE = {
    "retained_accuracy": ("headline", "further_metrics", "seeds"),
    "paired_differences": ("paired_differences",),
    "task_differences": ("tasks", "tasks_learnt", "task_differences"),
    "learning_by_position": ("tasks", "tasks_learnt"),  # where there are no paired tests
}


def write_comparison(results_dir: Path, run_ids: Sequence[str], output_folder: Path) -> Path:
    """Compare finished runs of one stream on one backbone; runs that differ in nothing but the seed are one method.

    Writes ``report.html``, ``aggregated_metrics.json``, ``tables.md``, ``tables.tex`` and ``figures/`` into
    ``output_folder``.

    Args:
        results_dir: Folder of the runs.
        run_ids: Names of run folders in it, in the order in which they are shown.
        output_folder: Usually ``results_dir / "comparison"``.

    Returns:
        Path of the page.

    Raises:
        HimalayaError: A run is unknown or unfinished, the runs differ in backbone, stream, tasks or test items, or two
            are the same method with the same seed.
    """
    comparison = compare(read_comparable_runs(results_dir, run_ids))
    stem = _stem(run_ids)
    pictures = [picture(section, output_folder / "figures", stem) for section in comparison_sections(comparison)]
    page = _render(comparison, _in_order(comparison_tables(comparison), pictures))
    write_json(output_folder / "aggregated_metrics.json", _aggregate(comparison))
    write_atomic(output_folder / "tables.md", markdown.document(comparison))
    write_atomic(output_folder / "tables.tex", latex.document(comparison))
    path = output_folder / "report.html"
    write_atomic(path, page)
    return path


def _in_order(tables: Sequence[Table], pictures: Sequence[Picture]) -> list[Table | Picture]:
    left = {table.topic: table for table in tables}
    parts: list[Table | Picture] = []
    for one in pictures:
        parts += [left.pop(topic) for topic in TABLES_ABOVE.get(one.section.topic, ()) if topic in left]
        parts.append(one)
    return parts


def _render(comparison: Comparison, parts: Sequence[Table | Picture]) -> str:
    looks, runs, first = method_styles(comparison.groups), comparison.runs, comparison.reference.first
    return render(
        "comparison.html.j2",
        title=" · ".join(look.label for look in looks),
        groups=comparison.groups,
        runs=runs,
        looks=looks,
        first=first,
        test_items=sum(cell["n"] for cell in first.final),
        notes=comparison.notes,
        parts=parts,
        primary=METRICS[0].title,
        costs=[(run, run.metrics["evaluation_cost"]) for run in runs]
        if all("evaluation_cost" in run.metrics for run in runs)
        else [],
        environments=_environments(runs),
        hash_digits=HASH_DIGITS,
    )


def _environments(runs: Sequence[RunRecord]) -> list[tuple[str, list[tuple[Any, list[str]]]]]:
    """Of every key of ``environment.json`` the different values, each with the runs that have it."""
    keys = dict.fromkeys(key for run in runs for key in run.environment if key not in NOT_OF_THE_MACHINE)
    found = []
    for key in keys:
        run_ids: dict[str, list[str]] = {}
        for run in runs:
            run_ids.setdefault(str(run.environment.get(key, "–")), []).append(run.run_id)
        found.append((key, list(run_ids.items())))
    return found


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
