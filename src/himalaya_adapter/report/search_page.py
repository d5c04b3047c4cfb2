"""Writes the report of a search, from what is in its ``trials.json``."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from himalaya_adapter.documents import read_text
from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.identity import opened
from himalaya_adapter.report.charts import XY, Axis, Figure, drawn, figure
from himalaya_adapter.report.metric_table import format_seconds
from himalaya_adapter.report.page import Page
from himalaya_adapter.report.palette import BOUND, FROZEN, OWN, Look
from himalaya_adapter.report.table import Table, Text, numbers, table, words
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
    shown = None
    while (search := _read(folder / "trials.json")) != shown:  # another process may have finished a trial meanwhile
        try:
            page, stem = _page(search, folder / "best.yaml"), f"{search['run_id']}_search" if figures else ""
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise _damaged(folder / "trials.json", error) from error
        path = page.write(folder, stem)
        shown = search
    return path


def _page(search: Mapping[str, Any], best: Path) -> Page:
    states = [trial["state"] for trial in search["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    few = "Too few trials have finished to tell which hyper-parameters matter"
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
            _space(search["search_space"]),
        ],
        texts=[("The run with the best values (best.yaml)", read_text(best))]
        if search["best"] is not None and best.is_file()
        else [],
    )


def _history(search: Mapping[str, Any]) -> Figure:
    """Value of each trial by its number, with the best so far; hollow if it was stopped."""
    trials: Sequence[Trial] = search["trials"]
    complete = [(trial["number"], trial["value"]) for trial in trials if trial["state"] == COMPLETE]
    stopped = [(trial["number"], _last_value(trial)) for trial in trials if trial["state"] == PRUNED]
    better = max if search["direction"] == "maximize" else min
    best = list(accumulate((value for _, value in complete), better))
    series = [drawn(SO_FAR, [(number, value) for (number, _), value in zip(complete, best, strict=True)], line=True)]
    series += [drawn(FINISHED, complete), drawn(STOPPED, stopped, hollow=True)]
    chart = XY(tuple(one for one in series if one.points), Axis("trial"), Axis(_named(search["metric"]), "score"))
    return figure("history", chart)


def _slices(search: Mapping[str, Any]) -> Figure:
    """Value against each hyper-parameter, one chart each, on the scale that the search draws it on."""
    charts = []
    for name, values in search["search_space"].items():
        names = tuple(_named(choice) for choice in values.get("choices", []))
        logarithmic = values["type"] == "loguniform" or values.get("log")
        ends = {} if names else {"low": values["low"], "high": values["high"]}
        x = Axis(name, scale="names" if names else "log" if logarithmic else "linear", names=names, **ends)
        found: dict[Look, list[tuple[float, float | None]]] = {FINISHED: [], STOPPED: [], BEST: []}
        for trial in search["trials"]:
            if trial["state"] in (COMPLETE, PRUNED):
                done = FINISHED if trial["state"] == COMPLETE else STOPPED
                value = trial["parameters"][name]
                place = names.index(_named(value)) if names else value
                found[BEST if trial["number"] == search["best"] else done].append((place, _last_value(trial)))
        series = tuple(drawn(look, at, hollow=look is STOPPED) for look, at in found.items() if at)
        charts.append(XY(series, x, Axis(_named(search["metric"]), "score")))
    return figure("parameters", *charts)


def _importance(shares: Mapping[str, float]) -> Figure:
    """Share of each hyper-parameter in what sets the best trials apart."""
    series = drawn(Look("importance", OWN), [(share, row) for row, share in enumerate(shares.values())])
    chart = XY((series,), Axis("importance", "score", low=0, high=1), Axis(scale="names", names=tuple(shares)))
    return figure("importance", chart)


def _trials(search: Mapping[str, Any]) -> Table:
    names, downwards = list(search["search_space"]), search["direction"] == "maximize"
    measured = [trial for trial in search["trials"] if trial["value"] is not None]
    others = [trial for trial in search["trials"] if trial["value"] is None]
    rows = []
    for trial in (*sorted(measured, key=lambda trial: trial["value"], reverse=downwards), *others):
        ended = trial["state"] + (f", as trial {trial['same_as']}" if trial["same_as"] is not None else "")
        ended += f": {trial['reason']}" if trial["reason"] else ""
        seconds = "–" if trial["seconds"] is None else format_seconds(trial["seconds"])
        value = Text(_value(_last_value(trial)), bold=trial["number"] == search["best"])
        parameters = numbers(*(_value(trial["parameters"][name]) for name in names))
        tasks = str(len(trial["after_task"]))
        rows.append((*words(str(trial["number"])), value, *parameters, *numbers(tasks, seconds), *words(ended)))
    header = (*words("trial"), *numbers(_named(search["metric"]), *names, "tasks", "time"), *words("ended"))
    return table("trials", header, rows)


def _space(space: Mapping[str, Any]) -> Table:
    rows = []
    for name, values in space.items():
        if "choices" in values:
            drawn_from = f"{values['type']} {', '.join(map(str, values['choices']))}"
        else:
            drawn_from = f"{values['type']} from {_value(values['low'])} to {_value(values['high'])}"
            drawn_from += f" in steps of {_value(values['step'])}" if "step" in values else ""
            drawn_from += ", logarithmic" if values.get("log") else ""
        rows.append(words(name, values["key"], drawn_from))
    return table("space", words("name", "key of the run", "range"), rows)


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


def _read(path: Path) -> dict[str, Any]:
    try:
        return opened(read_json(path))
    except FileNotFoundError as error:
        raise HimalayaError(
            f"there is no search in {path.parent}: give the folder that `himalaya search` wrote"
        ) from error
    except (ValueError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> HimalayaError:
    reason = one_line(error)
    return HimalayaError(f"{path} is damaged ({reason}): the same search writes it anew")
