"""What `himalaya latency` has measured, as rows of tables."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from himalaya_adapter.deploy.bundle.runner.latency import BASE

Rows = list[list[str]]
OVERHEAD_HEADER = ["weights", "step", "graph", "ms", "overhead", "95 % interval"]
OPERATOR_HEADER = ["weights", "step", "operator", "base µs (nodes)", "adapted: the base's", "adapted: the adapter's"]
SMALLEST_CHANGE = 0.002  # of the base's time; operators that change by less are summed up


def overhead_rows(result: Mapping[str, Any]) -> Rows:
    """A row for each graph: its median time, and how much longer it takes than the graph without the adapter."""
    rows = []
    for entry in result["measurements"]:
        for name, graph in entry["graphs"].items():
            overhead = ["", ""]
            if name != BASE:
                low, high = graph["interval"]
                overhead = [_percent(graph["ratio"]), f"{_percent(low)} to {_percent(high)}"]
            rows.append([entry["precision"], _step(entry), name, f"{graph['milliseconds']:.2f}", *overhead])
    return rows


def operator_rows(result: Mapping[str, Any], graph: str) -> Rows:
    """A row for each operator that takes another time with the adapter, the adapter's own nodes apart.

    Args:
        result: What was measured.
        graph: The graph whose profile is compared with the base's.
    """
    rows = []
    for entry in result["measurements"]:
        base = {row["operator"]: row for row in entry["profile"][BASE]}
        adapted: dict[bool, dict[str, Any]] = defaultdict(dict)
        for row in entry["profile"][graph]:
            adapted[row["adapter"]][row["operator"]] = row
        total = sum(row["microseconds"] for row in base.values())
        parts = [base, adapted[False], adapted[True]]
        rest = [{"microseconds": 0.0, "nodes": 0} for _ in parts]
        told = []
        for operator in sorted({name for part in parts for name in part}):
            cells = [part.get(operator, {"microseconds": 0.0, "nodes": 0}) for part in parts]
            spent = [cell["microseconds"] for cell in cells]
            if max(spent[2], abs(spent[1] - spent[0])) >= SMALLEST_CHANGE * total:
                told.append((spent[1] + spent[2] - spent[0], operator, cells))
            else:
                for sums, cell in zip(rest, cells, strict=True):
                    sums["microseconds"] += cell["microseconds"]
                    sums["nodes"] += cell["nodes"]
        told.sort(key=lambda one: -one[0])
        for _, operator, cells in [*told, (0.0, "all others", rest)]:
            rows.append([entry["precision"], _step(entry), operator, *map(_time, cells)])
    return rows


def device_line(result: Mapping[str, Any]) -> str:
    """Which machine the numbers are from, in its own words."""
    return ", ".join(f"{name} {value}" for name, value in result["device"].items())


def markdown(header: list[str], rows: Rows) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _step(entry: Mapping[str, Any]) -> str:
    return f"{entry['phase']}: {entry['tokens']} after {entry['past']}, {entry['threads']} threads"


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.2f} %"


def _time(cell: Mapping[str, Any]) -> str:
    return f"{cell['microseconds']:.0f} ({cell['nodes']})" if cell["nodes"] else ""
