"""Writes the report of a search: one self-contained HTML page, with its figures as PNG and PDF beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.report import search_figures
from himalaya_adapter.report.html import picture, render
from himalaya_adapter.report.sections import Section
from himalaya_adapter.storage import read_json, write_atomic

HISTORY = (
    "Each trial's value, and the best so far: a line that is still rising wants more trials. Trials that were stopped "
    "early were below the median of the finished ones after the same task."
)
IMPORTANCE = (
    "How much each hyper-parameter sets the best quarter of the finished trials apart from the others (PED-ANOVA), as "
    "a share. With fewer than about thirty trials read the order, not the numbers."
)
SLICES = (
    "Every trial's value against each hyper-parameter; the best is red. A best value at the edge of its range wants a "
    "wider range; a cloud without slope is a hyper-parameter that does not matter here."
)


def write_search_report(folder: Path) -> Path:
    """Write ``report.html`` and ``figures/<run_id>_search_<topic>.png|pdf`` into a search's folder.

    Returns:
        Path of the page.

    Raises:
        HimalayaError: There is no search in the folder, or its ``trials.json`` is damaged.
    """
    path = folder / "report.html"
    shown = None
    while (search := _read(folder / "trials.json")) != shown:  # another process may have finished a trial meanwhile
        write_atomic(path, _page(search, folder))
        shown = search
    return path


def _page(search: Mapping[str, Any], folder: Path) -> str:
    sections = [
        Section("history", "Trials", HISTORY, search_figures.history(search)),
        Section("parameters", "Hyper-parameters", SLICES, search_figures.slices(search)),
    ]
    if search["importance"]:
        figure = search_figures.importance(search["importance"])
        sections.append(Section("importance", "What matters", IMPORTANCE, figure))
    downwards = search["direction"] == "maximize"
    measured = [trial for trial in search["trials"] if trial["value"] is not None]
    others = [trial for trial in search["trials"] if trial["value"] is None]
    best = folder / "best.yaml"
    return render(
        "search.html.j2",
        value=_value,
        named=search_figures.named,
        search=search,
        names=list(search["search_space"]),
        trials=sorted(measured, key=lambda trial: trial["value"], reverse=downwards) + others,
        counts={
            state: sum(trial["state"] == state for trial in search["trials"])
            for state in dict.fromkeys(trial["state"] for trial in search["trials"])
        },
        last_value=search_figures.last_value,
        best=best.read_text(encoding="utf-8") if search["best"] is not None and best.is_file() else "",
        pictures=[picture(one, folder / "figures", f"{search['run_id']}_search") for one in sections],
    )


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise HimalayaError(
            f"there is no search in {path.parent}: give the folder that `himalaya search` wrote"
        ) from error
    except ValueError as error:
        raise HimalayaError(f"{path} is damaged ({error}): the same search writes it anew") from error
    return dict(content)
