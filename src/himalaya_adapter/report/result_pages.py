"""Writes the report of a run, and of several runs with their tables and ``aggregated_metrics.json``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from himalaya_adapter.evaluation.intervals import CONFIDENCE, RESAMPLES
from himalaya_adapter.evaluation.paired_tests import BLOCKS
from himalaya_adapter.report import cost_figures, latex, markdown, run_tables, score_figures, score_tables
from himalaya_adapter.report.charts import Figure
from himalaya_adapter.report.comparison import Comparison, compare
from himalaya_adapter.report.method_groups import MethodGroup, spread
from himalaya_adapter.report.page import Page
from himalaya_adapter.report.run_folder import read_comparable_runs, read_run
from himalaya_adapter.report.table import Table
from himalaya_adapter.storage import write_atomic, write_json
from himalaya_adapter.stream_metrics import METRICS

FORMAT = 2
LONGEST_STEM = 100  # characters; file names end at 255 bytes, and a topic and a suffix follow


def write_run_report(run_folder: Path, *, figures: bool = False) -> Path:
    """Write ``report.html`` into a finished run's folder, and the model card of a run that has a release.

    Args:
        run_folder: The run's folder.
        figures: Also write ``figures/<run_id>_<topic>.png`` and ``.pdf``, for papers.

    Returns:
        Path of the page.

    Raises:
        HimalayaError: The folder is missing, the run is unfinished or one of its files is damaged.
    """
    from himalaya_adapter.report.model_card import write_model_card  # loads torch and PEFT, which no page needs

    run = read_run(run_folder)
    write_model_card(run)
    return _page(compare([run])).write(run_folder, run.run_id if figures else "")


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
    tables = comparison_tables(comparison)
    write_json(output_folder / "aggregated_metrics.json", _aggregate(comparison))
    write_atomic(output_folder / "tables.md", markdown.document(comparison, tables))
    write_atomic(output_folder / "tables.tex", latex.document(tables, comparison.notes))
    return _page(comparison).write(output_folder, "_vs_".join(run_ids)[:LONGEST_STEM] if figures else "")


def comparison_tables(comparison: Comparison) -> list[Table]:
    """All tables of the results."""
    return [
        *score_tables.metric_tables(comparison.groups),
        *score_tables.measure_differences(comparison),
        *score_tables.task_tables(comparison.groups),
        *score_tables.task_differences(comparison),
    ]


def _page(comparison: Comparison) -> Page:
    groups, runs, first = comparison.groups, comparison.runs, comparison.reference.first
    configs = [(f"Configuration of {g.label} (config.yaml of {g.first.run_id})", g.first.config) for g in groups]
    return Page(
        kind="Run report" if len(runs) == 1 else f"Comparison of {len(groups)} methods, {len(runs)} runs",
        title=f"{' · '.join(group.label for group in groups)} on {first.metrics['stream']}",
        names=[group.look for group in groups],
        facts=[
            ("Runs", ", ".join(run.run_id for run in runs)),
            ("Backbone", first.metrics["backbone"]),
            ("Stream", first.metrics["stream"]),
            ("Tasks", str(len(first.tasks))),
            (f"{first.split.capitalize()} items", f"n = {sum(cell['n'] for cell in first.final):,}"),
            ("Seeds", ", ".join(map(str, sorted({run.metrics["seed"] for run in runs})))),
        ],
        notes=comparison.notes,
        parts=[*_parts(comparison), *run_tables.cpu_latency(runs), run_tables.environment(runs)],
        texts=[(title, config) for title, config in configs if config],
    )


def _parts(comparison: Comparison) -> list[Table | Figure | None]:
    """What is known of a run, or of methods side by side; what they have not recorded is left out."""
    groups, run = comparison.groups, comparison.reference.first
    alone, several = len(comparison.runs) == 1, len(run.tasks) > 1
    return [
        score_figures.retained_accuracy(groups) if several else None,
        *score_tables.metric_tables(groups),
        score_figures.paired_differences(comparison),
        *score_tables.measure_differences(comparison),
        score_figures.accuracy_matrix(groups) if several else None,
        score_figures.task_scores(groups[0]) if len(groups) == 1 else score_figures.scores_by_method(groups),
        *([score_tables.task_table_of(run)] if alone else score_tables.task_tables(groups)),
        *score_tables.task_differences(comparison),
        *(run_tables.sample_answers(run) if alone else []),
        score_figures.learning_by_position(groups) if several else None,
        cost_figures.loss_curves(groups),
        cost_figures.use_of_atoms(run) if alone else None,
        *(run_tables.events(run) if alone else []),
        *cost_figures.after_each_task(groups),
    ]


def _aggregate(comparison: Comparison) -> dict[str, Any]:
    first = comparison.reference.first
    return {
        "format": FORMAT,
        "backbone": first.metrics["backbone"],
        "stream": first.metrics["stream"],
        "tasks": list(first.tasks),
        "split": first.split,
        "test_hashes": first.test_hashes,
        "runs": {run.run_id: run.metrics for run in comparison.runs},
        "methods": [_method(group) for group in comparison.groups],
        "paired_tests": {
            "reference": comparison.reference.label,
            "difference": "reference minus method, on the same test items",
            "confidence": CONFIDENCE,
            "resamples": BLOCKS * RESAMPLES,
            "correction": "Holm over all entries of a list",
            "measures": _differences(comparison, "measures"),
            "tasks": _differences(comparison, "tasks"),
            "notes": list(comparison.notes),
        },
    }


def _method(group: MethodGroup) -> dict[str, Any]:
    spreads = {metric.key: group.spread(metric.key) for metric in METRICS}
    return {
        "label": group.label,
        "method": group.method,
        "run_ids": [run.run_id for run in group.runs],
        "seeds": list(group.seeds),
        "metrics": {key: asdict(over_seeds) for key, over_seeds in spreads.items() if over_seeds is not None},
        "tasks": [
            {
                "name": task,
                "after_learning": asdict(spread([run.after_learning[index]["score"] for run in group.runs])),
                "final": asdict(spread([run.final[index]["score"] for run in group.runs])),
            }
            for index, task in enumerate(group.first.tasks)
        ],
    }


def _differences(comparison: Comparison, family: Literal["measures", "tasks"]) -> list[dict[str, Any]]:
    return [
        {"method": rival.group.label, "of": name, "seeds_in_pairs": list(rival.seeds), **asdict(difference)}
        for rival in comparison.rivals
        for name, difference in getattr(rival, family).items()
    ]
