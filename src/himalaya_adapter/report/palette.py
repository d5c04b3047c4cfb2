"""Colours of methods and of everything else that is drawn: each readable on a bright page and on a dark one."""

from collections.abc import Sequence
from dataclasses import dataclass

from himalaya_adapter.registry import METHODS

METHOD_COLORS = {row.type.lower(): row.color for row in METHODS.values() if row.color is not None}
OTHER_COLORS = ("#8C564B", "#E7298A", "#5B8C00", "#00838F", "#9E7B00", "#B05CC6", "#5A6B8C")
PART_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#882255", "#999933")
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")
MARKERS = ("circle", "square", "up", "diamond", "down", "plus", "cross")
FROZEN, BOUND, OWN = "#7A828E", "#B3261E", PART_COLORS[0]
SHEETS = {"light": "#FFFFFF", "dark": "#1B2027"}  # what stands behind figures and tables
MARK_CONTRAST = 3.0  # of graphics with what is behind them (WCAG 2.2, 1.4.11)
STEP = 0.04  # of the way to black or white


@dataclass(frozen=True)
class Look:
    """How a method or a part is drawn; dash and marker tell it from others where colours do not."""

    label: str
    color: str
    dash: str = ""
    marker: str = MARKERS[0]

    @property
    def light(self) -> str:
        """Its colour on a bright page."""
        return legible(self.color, SHEETS["light"])

    @property
    def dark(self) -> str:
        """Its colour on a dark page."""
        return legible(self.color, SHEETS["dark"])


def method_looks(methods: Sequence[tuple[str, str | None]]) -> list[Look]:
    """One look per method, the same in all figures of a report.

    The first method of a type (``lora``) has the type's own colour in every report; further ones of it, and what has
    no type or one without a colour, take what is left.

    Args:
        methods: What each is called, and its type.
    """
    left = list(OTHER_COLORS)
    looks: list[Look] = []
    for index, (label, kind) in enumerate(methods):
        own = METHOD_COLORS.get(kind or "")
        if own is None or any(own == look.color for look in looks):
            own = left.pop(0)
            left = left or list(OTHER_COLORS)
        looks.append(Look(label, own, DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)]))
    return looks


def part_looks(names: Sequence[str]) -> list[Look]:
    """Looks of things that are no methods."""
    return [
        Look(name, PART_COLORS[i % len(PART_COLORS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(names)
    ]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours ``#rrggbb``, from 1 to 21 (WCAG 2.2)."""
    dark, bright = sorted(_luminance(_channels(color)) for color in (one, other))
    return (bright + 0.05) / (dark + 0.05)


def legible(color: str, behind: str, ratio: float = MARK_CONTRAST) -> str:
    """The colour, or the first on its way to black or white that has the contrast with what is behind it."""
    goal = 0.0 if _luminance(_channels(behind)) > 0.5 else 1.0
    channels = _channels(color)
    while contrast(color, behind) < ratio:
        channels = [channel + STEP * (goal - channel) for channel in channels]
        color = "#" + "".join(f"{round(255 * channel):02X}" for channel in channels)
    return color


def _channels(color: str) -> list[float]:
    return [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]


def _luminance(channels: Sequence[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
