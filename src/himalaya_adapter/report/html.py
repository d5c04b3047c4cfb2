"""Writes the reports: one self-contained HTML page each, with its figures as PNG and PDF beside it."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from himalaya_adapter.report import markdown
from himalaya_adapter.report.growth import TABLE_HEADER, growth_table
from himalaya_adapter.report.metric_table import format_interval, format_seconds, format_value, metric_rows
from himalaya_adapter.report.run_folder import Cell, RunRecord, read_comparable_runs, read_run
from himalaya_adapter.report.sections import Section, comparison_sections, run_sections
from himalaya_adapter.report.style import PNG_DPI, run_styles, save_figure
from himalaya_adapter.storage import write_atomic, write_json

CSS_PIXELS_PER_INCH = 112  # a full-width figure of 9 inches fills the text column of the page
PNG_WIDTH_AT = slice(16, 20)  # bytes of a PNG's header that hold its width in pixels
LONGEST_STEM = 100  # characters; file names end at 255 bytes, and a topic and a suffix follow
CARDS = ("retained_accuracy_auc", "learning_accuracy", "forgetting", "stored_bytes")
# Scores that only some methods have, as columns of the table of tasks.
EXTRA_SCORES = {"unlabelled": "without label", "released": "release file"}
HASH_DIGITS = 16  # shown of a SHA-256; enough to tell two data sets apart by eye


@dataclass(frozen=True)
class Picture:
    """A section as the template shows it: the figure as a data URI, its width in CSS pixels."""

    section: Section
    source: str
    width: int


def write_run_report(run_folder: Path) -> Path:
    """Write ``report.html`` and ``figures/<run_id>_<topic>.png|pdf`` into a finished run's folder.

    Returns:
        Path of the page.

    Raises:
        HimalayaError: The folder is missing, the run is unfinished or one of its files is damaged.
    """
    run = read_run(run_folder)
    page = _render([run], run_sections(run), run_folder / "figures", run.run_id)
    path = run_folder / "report.html"
    write_atomic(path, page)
    return path


def write_comparison(results_dir: Path, run_ids: Sequence[str], output_folder: Path) -> Path:
    """Compare finished runs of one stream on one backbone.

    Writes ``report.html``, ``aggregated_metrics.json``, ``tables.md`` and ``figures/`` into ``output_folder``.

    Args:
        results_dir: Folder of the runs.
        run_ids: Names of run folders in it, in the order in which they are shown.
        output_folder: Usually ``results_dir / "comparison"``.

    Returns:
        Path of the page.

    Raises:
        HimalayaError: A run is unknown or unfinished, or the runs differ in backbone, stream, tasks, split or items.
    """
    runs = read_comparable_runs(results_dir, run_ids)
    page = _render(runs, comparison_sections(runs), output_folder / "figures", _comparison_stem(run_ids))
    write_json(output_folder / "aggregated_metrics.json", _aggregate(runs))
    write_atomic(output_folder / "tables.md", markdown.tables(runs))
    path = output_folder / "report.html"
    write_atomic(path, page)
    return path


def page_environment() -> Environment:
    """Where the pages' templates are; all text is escaped."""
    return Environment(
        loader=PackageLoader("himalaya_adapter.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(runs: Sequence[RunRecord], sections: Sequence[Section], figures_folder: Path, stem: str) -> str:
    environment = page_environment()
    environment.filters |= {
        "formula": _formula,
        "score": _score,
        "interval": _cell_interval,
        "change": _change,
        "strict": _strict,
        "seconds": format_seconds,
    }
    looks = run_styles(runs)
    first = runs[0]
    rows = metric_rows(runs)
    return environment.get_template("report.html.j2").render(
        title=looks[0].label if len(runs) == 1 else " · ".join(look.label for look in looks),
        runs=list(zip(runs, looks, strict=True)),
        first=first,
        test_items=sum(cell["n"] for cell in first.final),
        rows=rows,
        cards=[row for row in rows if row.metric.key in CARDS],
        extra_scores={key: title for key, title in EXTRA_SCORES.items() if key in first.metrics["tasks"][0]},
        growth_header=TABLE_HEADER,
        growth_rows=growth_table(first) if len(runs) == 1 else [],
        costs=[(run, look, run.metrics["evaluation_cost"]) for run, look in zip(runs, looks, strict=True)]
        if all("evaluation_cost" in run.metrics for run in runs)
        else [],
        environment_keys=_environment_keys(runs),
        splits=("train", "validation", "test") if len(runs) == 1 else (first.split,),
        hash_digits=HASH_DIGITS,
        pictures=[
            picture(section, save_figure(section.figure, figures_folder, f"{stem}_{section.topic}"))
            for section in sections
        ],
    )


def picture(section: Section, png: bytes) -> Picture:
    """A section whose figure is drawn."""
    width = int.from_bytes(png[PNG_WIDTH_AT], "big") * CSS_PIXELS_PER_INCH // PNG_DPI
    return Picture(section, "data:image/png;base64," + base64.b64encode(png).decode(), width)


def _comparison_stem(run_ids: Sequence[str]) -> str:
    """Names the figures of a comparison after its runs; by a hash of them where the names would be too long."""
    stem = "_vs_".join(run_ids)
    if len(stem.encode()) <= LONGEST_STEM:
        return stem
    return f"{len(run_ids)}_runs_{hashlib.sha256(stem.encode()).hexdigest()[:12]}"


def _aggregate(runs: Sequence[RunRecord]) -> dict[str, Any]:
    first = runs[0]
    return {
        "format": 1,
        "backbone": first.metrics["backbone"],
        "stream": first.metrics["stream"],
        "tasks": list(first.tasks),
        "split": first.split,
        "test_hashes": {task: first.test_hash(task) for task in first.tasks},
        "runs": {run.run_id: run.metrics for run in runs},
    }


def _environment_keys(runs: Sequence[RunRecord]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    return [key for key in keys if key not in ("data_hashes", "format")]


def _formula(text: str) -> Markup:
    """Set ``_{…}`` as a subscript; everything else is escaped."""
    return Markup(re.sub(r"_\{(.+?)\}", r"<sub>\1</sub>", str(escape(text))))


def _score(cell: Cell) -> str:
    return format_value(cell["score"], "score")


def _cell_interval(cell: Cell) -> str:
    return format_interval((cell["low"], cell["high"]))


def _change(cell: Cell, earlier: Cell) -> str:
    return format_value(cell["score"] - earlier["score"], "signed")


def _strict(cell: Cell) -> str:
    return format_value(cell.get("strict"), "score")
