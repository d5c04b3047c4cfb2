"""How numbers are printed for people."""

from typing import Any

from himalaya_adapter.report.method_groups import Spread
from himalaya_adapter.stream_metrics import Kind

FULL_COUNT = 1000  # means of counts from here on have no decimals
Interval = tuple[float, float]


def format_value(value: Any, kind: Kind) -> str:
    """Print a value: three decimals, SI bytes, hours and minutes, a true minus; a dash for None."""
    if value is None:
        return "–"
    if kind == "bytes":
        return format_bytes(value)
    if kind == "count":
        return f"{round(value):,}" if value >= FULL_COUNT else f"{value:g}"
    if kind == "seconds":
        return format_seconds(value)
    rounded = round(value, 3) + 0.0  # + 0.0 turns −0.0 into 0.0
    text = f"{rounded:+.3f}" if kind == "signed" and rounded else f"{rounded:.3f}"
    return text.replace("-", "−")


def format_deviation(over_seeds: Spread | None, kind: Kind) -> str:
    """``± 0.004``, the standard deviation over seeds; nothing for one seed, and of a norm, whose largest is shown."""
    if over_seeds is None or over_seeds.deviation is None or kind == "norm":
        return ""
    if over_seeds.deviation == 0 and kind in ("bytes", "count"):
        return ""
    return f"± {format_value(over_seeds.deviation, 'score' if kind == 'signed' else kind)}"


def format_interval(interval: Interval | None) -> str:
    """``[0.684, 0.742]``, or nothing for None."""
    if interval is None:
        return ""
    return f"[{format_value(interval[0], 'score')}, {format_value(interval[1], 'score')}]"


def format_bytes(count: float) -> str:
    """Bytes in SI units (1 kB = 1000 bytes) with three significant figures or more."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:  # what rounds to 1000 of the smaller unit
            return f"{count / size:.2f} {unit}" if count < 99.995 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """``42.1 s``, ``3 min 20 s`` or ``1 h 12 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))
