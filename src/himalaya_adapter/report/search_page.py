"""Writes the report of a search, from what is in its ``trials.json``."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from himalaya_adapter.documents import document_text, read_text
from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.identity import opened
from himalaya_adapter.report.charts import XY, Axis, Figure, Point, Series, figure
from himalaya_adapter.report.formats import format_value
from himalaya_adapter.report.page import Page
from himalaya_adapter.report.palette import BOUND, FROZEN, OWN, Look
from himalaya_adapter.report.run_folder import WRONG
from himalaya_adapter.report.table import Table, Text, table, words
from himalaya_adapter.storage import read_json

COMPLETE, PRUNED = "complete", "pruned"
FINISHED, STOPPED, BEST = Look("finished", OWN), Look("stopped early, value until then", FROZEN), Look("best", BOUND)
SO_FAR = Look("best so far", OWN, marker="")
Trial = Mapping[str, Any]


def write_search_report(folder: Path, *, figures: bool = False) -> Path:
    """Write ``report.html`` into a search's folder.

    Args:
        folder: The search's folder.
        figures: Also write ``figures/<run_id>_search_<topic>.png`` and ``.pdf``, for papers.

    Returns:
        Path of the page.

    Raises:
        HimalayaError: There is no search in the folder, or its ``trials.json`` is damaged.
    """
    path, shown = folder / "trials.json", None
    if not path.is_file():
        raise HimalayaError(f"there is no search in {folder}: give the folder that `himalaya search` wrote")
    while True:
        try:
            search = opened(read_json(path))
            if search == shown:
                return folder / "report.html"
            page, stem = _page(search, folder / "best.yaml"), f"{search['run_id']}_search" if figures else ""
        except WRONG as error:
            raise HimalayaError(f"{path} is damaged ({one_line(error)}): the same search writes it anew") from error
        page.write(folder, stem)
        shown = search  # another process may have finished a trial meanwhile


def _page(search: Mapping[str, Any], best: Path) -> Page:
    states = [trial["state"] for trial in search["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    few = "Too few trials have finished to tell which hyper-parameters matter"
    texts = [("What was searched", document_text(search["search_space"]))]
    if search["best"] is not None and best.is_file():
        texts.append(("The run with the best values (best.yaml)", read_text(best)))
    return Page(
        kind="Search report",
        title=f"Search of {search['method_name']} on {search['stream']}",
        names=[Look(search["method_name"], OWN)],
        facts=[
            ("Run", search["run_id"]),
            ("Backbone", search["backbone"]),
            ("Stream of the search", f"{search['stream']}, validation items"),
            ("Objective", f"{search['direction']} {_named(search['metric'])}"),
            ("Trials", f"{len(states)} of {search['n_trials']}: {counts}"),
            ("Seed", str(search["seed"])),
        ],
        notes=[] if search["importance"] else [f"{few}: {states.count(COMPLETE)}, of at least 10 that differ."],
        parts=[
            _history(search),
            _slices(search),
            _importance(search["importance"]) if search["importance"] else None,
            _trials(search),
        ],
        texts=texts,
    )


def _history(search: Mapping[str, Any]) -> Figure:
    """Value of each trial by its number, with the best so far; hollow if it was stopped."""
    trials: Sequence[Trial] = search["trials"]
    complete = [(trial["number"], trial["value"]) for trial in trials if trial["state"] == COMPLETE]
    stopped = [(trial["number"], _last_value(trial)) for trial in trials if trial["state"] == PRUNED]
    best = accumulate((value for _, value in complete), max if search["direction"] == "maximize" else min)
    so_far = [(number, value) for (number, _), value in zip(complete, best, strict=True)]
    series = [Series(SO_FAR, so_far, line=True), Series(FINISHED, complete), Series(STOPPED, stopped, hollow=True)]
    chart = XY([one for one in series if one.points], Axis("trial"), Axis(_named(search["metric"]), "score"))
    return figure("history", chart)


def _slices(search: Mapping[str, Any]) -> Figure:
    """Value against each hyper-parameter, one chart each, on the scale that the search draws it on."""
    charts = []
    for name, values in search["search_space"].items():
        names = [_named(choice) for choice in values.get("choices", [])]
        logarithmic = values["type"] == "loguniform" or values.get("log")
        ends = {} if names else {"low": values["low"], "high": values["high"]}
        x = Axis(name, scale="names" if names else "log" if logarithmic else "linear", names=names, **ends)
        found: dict[Look, list[Point]] = {FINISHED: [], STOPPED: [], BEST: []}
        for trial in search["trials"]:
            if trial["state"] in (COMPLETE, PRUNED):
                done = FINISHED if trial["state"] == COMPLETE else STOPPED
                value = trial["parameters"][name]
                place = names.index(_named(value)) if names else value
                found[BEST if trial["number"] == search["best"] else done].append((place, _last_value(trial)))
        series = [Series(look, at, hollow=look is STOPPED) for look, at in found.items() if at]
        charts.append(XY(series, x, Axis(_named(search["metric"]), "score")))
    return figure("parameters", *charts)


def _importance(shares: Mapping[str, float]) -> Figure:
    """Share of each hyper-parameter in what sets the best trials apart."""
    series = Series(Look("importance", OWN), [(share, row) for row, share in enumerate(shares.values())])
    chart = XY([series], Axis("importance", "score", low=0, high=1), Axis(scale="names", names=list(shares)))
    return figure("importance", chart)


def _trials(search: Mapping[str, Any]) -> Table:
    names, sign = list(search["search_space"]), -1 if search["direction"] == "maximize" else 1
    rows = []
    for trial in sorted(search["trials"], key=lambda one: (one["value"] is None, sign * (one["value"] or 0.0))):
        ended = trial["state"] + (f", as trial {trial['same_as']}" if trial["same_as"] is not None else "")
        ended += f": {trial['reason']}" if trial["reason"] else ""
        value = Text(_value(_last_value(trial)), bold=trial["number"] == search["best"])
        parameters = (_value(trial["parameters"][name]) for name in names)
        facts = (str(len(trial["after_task"])), format_value(trial["seconds"], "seconds"))
        rows.append((str(trial["number"]), value, *parameters, *facts, ended))
    header = (*words("trial"), _named(search["metric"]), *names, "tasks", "time", *words("ended"))
    return table("trials", header, rows)


def _last_value(trial: Trial) -> float | None:
    """A trial's value; of one that was stopped, the last that it reported."""
    if trial["value"] is not None:
        return float(trial["value"])
    return float(list(trial["after_task"].values())[-1]) if trial["after_task"] else None


def _named(value: object) -> str:
    """A metric's or a choice's name as text."""
    return value.replace("_", " ") if isinstance(value, str) else str(value)


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
