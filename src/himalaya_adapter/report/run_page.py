"""Writes the report of one run."""

from collections.abc import Sequence
from pathlib import Path

from himalaya_adapter.report import cost_figures, growth, score_figures
from himalaya_adapter.report.method_groups import alone
from himalaya_adapter.report.metric_table import Row, metric_rows
from himalaya_adapter.report.metric_tables import metric_tables
from himalaya_adapter.report.page import Card, Page
from himalaya_adapter.report.run_folder import RunRecord, read_run
from himalaya_adapter.report.run_tables import cpu_latency, data_hashes, environment, evaluation_cost
from himalaya_adapter.report.task_tables import sample_answers, task_table_of

CARDS = ("retained_accuracy_auc", "average_accuracy", "learning_accuracy", "forgetting", "stored_bytes")
SPLITS = ("train", "validation", "test")


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
    return _page(run).write(run_folder, run.run_id if figures else "")


def _page(run: RunRecord) -> Page:
    group = [alone(run)]
    several = len(run.tasks) > 1
    return Page(
        kind="Run report",
        title=f"{group[0].label} on {run.metrics['stream']}",
        names=[group[0].look],
        facts=[("Run", run.run_id), *shared_facts(run), ("Seed", str(run.metrics["seed"]))],
        cards=_cards(run, metric_rows(group)),
        parts=[
            score_figures.retained_accuracy(group) if several else None,
            *metric_tables(group),
            score_figures.accuracy_matrix(group) if several else None,
            score_figures.task_scores(group),
            task_table_of(run),
            *sample_answers(run),
            cost_figures.loss_curves(group),
            score_figures.learning_by_position(group) if several else None,
            cost_figures.use_of_atoms(run),
            growth.growth_timeline(run),
            *growth.growth_table(run),
            growth.room_left(group),
            cost_figures.norms(group),
            cost_figures.stored_bytes_by_part(run),
            cost_figures.seconds_per_task(run),
            *cpu_latency([run]),
            *evaluation_cost([run]),
            environment([run]),
            data_hashes(run, SPLITS),
        ],
        texts=[(f"Configuration of {run.run_id} (config.yaml)", run.config)] if run.config else [],
    )


def shared_facts(run: RunRecord) -> list[tuple[str, str]]:
    """What runs that may be compared have in common."""
    items = sum(cell["n"] for cell in run.final)
    return [
        ("Backbone", run.metrics["backbone"]),
        ("Stream", run.metrics["stream"]),
        ("Tasks", str(len(run.tasks))),
        (f"{run.split.capitalize()} items", f"n = {items:,}"),
    ]


def _cards(run: RunRecord, rows: Sequence[Row]) -> list[Card]:
    cells = {row.metric.key: (row.metric.title, row.cells[0]) for row in rows}
    frozen = cells["frozen_accuracy"][1].text if "frozen_accuracy" in cells else "–"
    notes = {
        "learning_accuracy": f"frozen model {frozen}",
        "forgetting": "read beside learning accuracy",
        "stored_bytes": f"{run.metrics.get('trainable_parameters', 0):,} trainable parameters",
    }
    shown = [(key, *cells[key]) for key in CARDS if key in cells]
    return [Card(title, cell.text, notes.get(key, cell.small)) for key, title, cell in shown]
