"""The adapter's overhead: graphs with it against the graph without it, in prefill and in decoding."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from .graph import Array, CausalGraph, Threads
from .measure import compare, interleaved, pinned
from .profile import profile

BASE, CONTROL = "base", "base again"
OPENINGS = 8
# Tokens of a step and tokens before it, at batch 1.
PHASES = {"prefill": (128, 0), "decode": (1, 128)}


def measure(graphs: Mapping[str, Path], prompt: Array, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Time graphs against each other, then profile them.

    All graphs are opened `OPENINGS` times, each time in another order, and the base twice: what the second base takes
    longer or less than the first (`CONTROL`) is the error of the measurement.

    Args:
        graphs: Their files by name; ``base`` is the one without the adapter.
        prompt: Token ids ``(n,)`` (`CausalGraph.timed_step`).
        threads: Threads, each on a CPU of its own where the system can pin them.
        seconds: About how long the rounds of one phase take.

    Returns:
        For each phase: its shape, the rounds, what `measure.compare` says of each graph, and the graphs' profiles.
    """
    paths = {**graphs, CONTROL: graphs[BASE]}
    times: dict[str, list[dict[str, Array]]] = {phase: [] for phase in PHASES}
    with pinned(threads) as cpus:
        chosen = Threads(threads, shared=threads > 1)
        if chosen.shared:
            _make_pool(threads)
        for opening in range(OPENINGS):
            order = [*paths][opening % len(paths) :] + [*paths][: opening % len(paths)]
            sessions = {name: CausalGraph(paths[name], chosen) for name in order}
            for phase, (tokens, past) in PHASES.items():
                steps = {name: sessions[name].timed_step(tokens, past, prompt) for name in order}
                taken = interleaved(steps, seconds / OPENINGS)
                times[phase].append({name: taken[name] for name in paths})
            del sessions, steps
        return [
            {
                "phase": phase,
                "tokens": tokens,
                "past": past,
                "threads": threads,
                "pinned_to": cpus,
                "rounds": [len(taken[BASE]) for taken in times[phase]],
                "graphs": compare(times[phase], BASE),
                "profile": {name: profile(path, tokens, past, prompt, chosen) for name, path in graphs.items()},
            }
            for phase, (tokens, past) in PHASES.items()
        ]


@functools.cache
def _make_pool(threads: int) -> None:
    """Make the threads that the process's sessions share; there is one such pool, so its size cannot change."""
    onnxruntime.set_global_thread_pool_sizes(threads, 1)


def summary(measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What was measured as lines of text, with the operators that take the adapter's time."""
    for entry in measured:
        for name, graph in entry["graphs"].items():
            line = f"{entry['phase']} ({entry['tokens']} tokens after {entry['past']}), {name}: "
            line += f"{graph['milliseconds']:.3f} ms"
            if name != BASE:
                low, high = graph["interval"]
                line += f", {graph['ratio']:.4f} x {BASE} (95 % interval {low:.4f} to {high:.4f})"
            yield line
        for name, profiled in entry["profile"].items():
            rows = [row for row in profiled if row["adapter"]]
            if rows:
                spent = ", ".join(f"{row['operator']} {row['microseconds']:.0f}" for row in rows)
                yield f"{entry['phase']}, microseconds of the operators of {name}'s adapter: {spent}"
