"""Where a graph's time goes: ONNX Runtime's own profile, summed by operator, the adapter's nodes apart."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from .graph import Array, CausalGraph, Threads
from .measure import WARM_UP

STEPS = 10
ADAPTER = "himalaya"  # in the name of every node that belongs to the adapter


def profile(path: Path, tokens: int, past: int, prompt: Array, threads: Threads) -> list[dict[str, Any]]:
    """Profile steps of one kind.

    Args:
        path: The graph.
        tokens: Tokens of a step, batch 1.
        past: Tokens before it.
        prompt: As for `CausalGraph.timed_step`.
        threads: As for `CausalGraph`.

    Returns:
        For each operator, the slowest first: ``operator``, whether its nodes are the adapter's (``adapter``), how many
        ``nodes`` a step runs, and their ``microseconds`` in a step. Profiling itself takes time, a microsecond or so
        for a node: shares are comparable, sums are larger than what `measure.interleaved` finds.
    """
    with tempfile.TemporaryDirectory() as folder:
        graph = CausalGraph(path, threads, Path(folder) / "profile")
        step = graph.timed_step(tokens, past, prompt)
        for _ in range(WARM_UP + STEPS):
            step()
        events = json.loads(Path(graph.session.end_profiling()).read_text(encoding="utf-8"))
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    # The median of each node over the steps: a mean would be that of the moments when another process ran.
    durations: dict[tuple[str, str], list[int]] = defaultdict(list)
    nodes = [event for event in events if event["cat"] == "Node" and event["ts"] >= runs[-STEPS]]
    nodes = [event for event in nodes if "op_name" in event["args"]]
    for event in nodes:
        durations[event["args"]["op_name"], event["name"]].append(event["dur"])
    spent: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for (operator, name), taken in durations.items():
        spent[operator, ADAPTER in name.lower()].append(median(taken) * len(taken) / STEPS)
    rows = [
        {"operator": operator, "adapter": adapter, "nodes": len(times), "microseconds": sum(times)}
        for (operator, adapter), times in spent.items()
    ]
    return sorted(rows, key=lambda row: -float(row["microseconds"]))
