"""Figures of a search, from what is in its ``trials.json``."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from himalaya_adapter.report import style

COMPLETE, PRUNED, FAILED = "complete", "pruned", "fail"
COLOR = style.PART_COLORS[0]
PANELS_IN_A_ROW = 3
Trial = Mapping[str, Any]


def history(search: Mapping[str, Any]) -> Figure:
    """Value of each trial by its number, with the best so far; hollow if it was stopped, a cross if it failed."""
    trials: Sequence[Trial] = search["trials"]
    complete = _in_state(trials, COMPLETE)
    figure = style.new_figure(3.6)
    axes = figure.subplots()
    if complete:
        better = max if search["direction"] == "maximize" else min
        best = list(accumulate((one["value"] for one in complete), better))
        numbers = [one["number"] for one in complete]
        axes.step(
            [*numbers, trials[-1]["number"]],
            [*best, best[-1]],
            where="post",
            color=COLOR,
            linewidth=1.4,
            alpha=0.6,
            label="best so far",
        )
        axes.plot(numbers, [one["value"] for one in complete], "o", color=COLOR, markersize=5, label="finished")
    stopped = [one for one in _in_state(trials, PRUNED) if one["after_task"]]
    if stopped:
        axes.plot(
            [one["number"] for one in stopped],
            [one["after_task"][str(len(one["after_task"]))] for one in stopped],
            "o",
            color=style.FROZEN_COLOR,
            markerfacecolor="white",
            markersize=5,
            label="stopped early, value until then",
        )
    failed = _in_state(trials, FAILED)
    if failed:
        bottom = axes.get_ylim()[0]
        numbers = [one["number"] for one in failed]
        axes.plot(numbers, [bottom] * len(failed), "x", color=style.BOUND_COLOR, clip_on=False, label="failed")
    style.style_axes(axes, x="trial", y=named(search["metric"]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.add_legend(figure, axes)
    return figure


def importance(shares: Mapping[str, float]) -> Figure:
    """Share of each hyper-parameter in what sets the best trials apart."""
    figure = style.new_figure(0.9 + 0.36 * len(shares))
    axes = figure.subplots()
    names = list(shares)[::-1]
    bars = axes.barh(names, [shares[name] for name in names], 0.6, color=COLOR)
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=style.TEXT_SIZE, color=style.INK)
    style.style_axes(axes, x="importance", grid="x")
    axes.set_xlim(0, 1.05)
    return figure


def slices(search: Mapping[str, Any]) -> Figure:
    """Value against each hyper-parameter, one panel each, on the scale that the search draws it on."""
    space: Mapping[str, Any] = search["search_space"]
    columns = min(PANELS_IN_A_ROW, len(space))
    rows = -(-len(space) // columns)
    figure = style.new_figure(2.5 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    best = search["best"]
    for axes, (name, one) in zip(panels, space.items(), strict=False):
        choices = [named(choice) for choice in one.get("choices", [])]
        for trial in (one for one in search["trials"] if one["state"] in (COMPLETE, PRUNED)):
            value = last_value(trial)
            if value is None:
                continue
            found = trial["parameters"][name]
            done = trial["state"] == COMPLETE
            axes.plot(
                [choices.index(named(found)) if choices else found],
                [value],
                "o",
                color=style.BOUND_COLOR if trial["number"] == best else COLOR if done else style.FROZEN_COLOR,
                markerfacecolor=None if done else "white",
                markersize=5,
            )
        _name_values(axes, one, choices)
        first = axes.get_subplotspec().is_first_col()
        style.style_axes(axes, x=name.replace("$", r"\$"), y=named(search["metric"]) if first else "", grid="both")
    for axes in list(figure.axes)[len(space) :]:
        axes.set_visible(False)
    return figure


def last_value(trial: Trial) -> float | None:
    """A trial's value; of one that was stopped, the last that it reported."""
    if trial["value"] is not None:
        return float(trial["value"])
    return float(list(trial["after_task"].values())[-1]) if trial["after_task"] else None


def named(value: object) -> str:
    """A metric's or a choice's name as text."""
    return value.replace("_", " ") if isinstance(value, str) else str(value)


def _in_state(trials: Sequence[Trial], state: str) -> list[Trial]:
    return [trial for trial in trials if trial["state"] == state]


def _name_values(axes: Axes, values: Mapping[str, Any], choices: Sequence[str]) -> None:
    if choices:
        axes.set_xticks(range(len(choices)), [choice.replace("$", r"\$") for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
        return
    if values["type"] == "loguniform" or values.get("log"):
        axes.set_xscale("log")
    margin = 0.04
    low, high = axes.transData.transform([(values["low"], 0), (values["high"], 0)])[:, 0]
    left, right = axes.transData.inverted().transform(
        [(low - margin * (high - low), 0), (high + margin * (high - low), 0)]
    )[:, 0]
    axes.set_xlim(left, right)
