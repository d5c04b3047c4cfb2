"""The adapter's overhead: the graph with it against the graph without it, in prefill and in decoding."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .graph import Array, CausalGraph
from .measure import compare, interleaved, pinned

BASE, ADAPTED, CONTROL = "base", "adapted", "base again"
OPENINGS = 8
# Tokens of a step and tokens before it, at batch 1.
PHASES = {"prefill": (128, 0), "decode": (1, 128)}


def measure(
    base: Path, adapted: Path, precision: str, prompt: Sequence[int], threads: int, seconds: float
) -> list[dict[str, Any]]:
    """Time two graphs against each other.

    They are opened `OPENINGS` times, each time in another order, and the base twice: what the second base takes
    longer or less than the first (`CONTROL`) is the error of the measurement.

    Args:
        base: The graph without the adapter.
        adapted: The graph with it.
        precision: Of the base's weights.
        prompt: Token ids (`CausalGraph.timed_step`).
        threads: Threads, each on a CPU of its own where the system can pin them.
        seconds: About how long the rounds of one phase take.

    Returns:
        For each phase: its precision and shape, the rounds, and what `measure.compare` says of each graph.
    """
    paths = {BASE: base, ADAPTED: adapted, CONTROL: base}
    times: dict[str, list[dict[str, Array]]] = {phase: [] for phase in PHASES}
    with pinned(threads) as cpus:
        for opening in range(OPENINGS):
            order = [*paths][opening % len(paths) :] + [*paths][: opening % len(paths)]
            graphs = {name: CausalGraph(paths[name], threads) for name in order}
            for phase, (tokens, past) in PHASES.items():
                steps = {name: graphs[name].timed_step(tokens, past, prompt) for name in order}
                taken = interleaved(steps, seconds / OPENINGS)
                times[phase].append({name: taken[name] for name in paths})
            del graphs, steps
    return [
        {
            "precision": precision,
            "phase": phase,
            "tokens": tokens,
            "past": past,
            "threads": threads,
            "pinned_to": cpus,
            "rounds": [len(taken[BASE]) for taken in times[phase]],
            "graphs": compare(times[phase], BASE),
        }
        for phase, (tokens, past) in PHASES.items()
    ]


def told(device: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What was measured, line by line, and on which machine."""
    yield ", ".join(f"{name} {value}" for name, value in device.items())
    for entry in measured:
        for name, graph in entry["graphs"].items():
            line = f"{entry['precision']} {entry['phase']} ({entry['tokens']} tokens after {entry['past']}), {name}: "
            line += f"{graph['milliseconds']:.3f} ms"
            if name != BASE:
                low, high = graph["interval"]
                line += f", {graph['ratio']:.4f} x {BASE} (95 % interval {low:.4f} to {high:.4f})"
            yield line
