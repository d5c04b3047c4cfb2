"""Writes the report of one run: a self-contained HTML page, with its figures as PNG and PDF beside it."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from himalaya_adapter.report.growth import TABLE_HEADER, growth_table
from himalaya_adapter.report.method_groups import alone
from himalaya_adapter.report.metric_table import format_interval, format_seconds, format_value, metric_rows
from himalaya_adapter.report.model_card import write_model_card
from himalaya_adapter.report.run_folder import Cell, read_run
from himalaya_adapter.report.sections import Section, run_sections
from himalaya_adapter.report.style import PNG_DPI, method_styles, save_figure
from himalaya_adapter.storage import write_atomic

CSS_PIXELS_PER_INCH = 112  # a full-width figure of 9 inches fills the text column of the page
PNG_WIDTH_AT = slice(16, 20)  # bytes of a PNG's header that hold its width in pixels
CARDS = ("retained_accuracy_auc", "learning_accuracy", "forgetting", "stored_bytes")
# Scores that only some methods have, as columns of the table of tasks.
EXTRA_SCORES = {"unlabelled": "without label", "released": "release file"}
HASH_DIGITS = 16  # shown of a SHA-256; enough to tell two data sets apart by eye
NOT_OF_THE_MACHINE = ("data_hashes", "backbone_sizes", "format")  # of environment.json, shown elsewhere


@dataclass(frozen=True)
class Picture:
    """A section as the template shows it: the figure as a data URI, its width in CSS pixels."""

    section: Section
    source: str
    width: int


def write_run_report(run_folder: Path) -> Path:
    """Write ``report.html`` and ``figures/<run_id>_<topic>.png|pdf`` into a finished run's folder.

    Of a run that has a release its model card is written, too.

    Returns:
        Path of the page.

    Raises:
        HimalayaError: The folder is missing, the run is unfinished or one of its files is damaged.
    """
    run = read_run(run_folder)
    (look,) = method_styles([alone(run)])
    rows = metric_rows([alone(run)])
    page = render(
        "report.html.j2",
        title=look.label,
        look=look,
        first=run,
        test_items=sum(cell["n"] for cell in run.final),
        rows=rows,
        cards=[row for row in rows if row.metric.key in CARDS],
        extra_scores={key: title for key, title in EXTRA_SCORES.items() if key in run.metrics["tasks"][0]},
        growth_header=TABLE_HEADER,
        growth_rows=growth_table(run),
        cost=run.metrics.get("evaluation_cost"),
        environment_keys=[key for key in run.environment if key not in NOT_OF_THE_MACHINE],
        hash_digits=HASH_DIGITS,
        pictures=[picture(section, run_folder / "figures", run.run_id) for section in run_sections(run)],
    )
    write_model_card(run)
    path = run_folder / "report.html"
    write_atomic(path, page)
    return path


def render(template: str, **content: Any) -> str:
    """Fill a template; every text in it is escaped."""
    environment = Environment(
        loader=PackageLoader("himalaya_adapter.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "formula": _formula,
        "score": _score,
        "interval": _cell_interval,
        "change": _change,
        "strict": _strict,
        "seconds": format_seconds,
    }
    return environment.get_template(template).render(content)


def picture(section: Section, folder: Path, stem: str) -> Picture:
    """Write a section's figure as ``<stem>_<topic>.png|pdf`` into ``folder``, and turn it into a part of a page."""
    png = save_figure(section.figure, folder, f"{stem}_{section.topic}")
    width = int.from_bytes(png[PNG_WIDTH_AT], "big") * CSS_PIXELS_PER_INCH // PNG_DPI
    return Picture(section, "data:image/png;base64," + base64.b64encode(png).decode(), width)


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
