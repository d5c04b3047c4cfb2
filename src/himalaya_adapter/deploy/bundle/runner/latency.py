"""The adapter's overhead: the graph with it against the graph without it, interleaved in one process."""

import contextlib
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .graph import Array, CausalGraph

BASE, ADAPTED, CONTROL = "base", "adapted", "base again"
OPENINGS = 8
# Tokens of a step and tokens before it, at batch 1.
PHASES = {"prefill": (128, 0), "decode": (1, 128)}
WARM_UP = 2
FEWEST_ROUNDS, MOST_ROUNDS = 3, 1000
RESAMPLES = 1000
CONFIDENCE = 0.95
DEVICE_TREE = Path("/proc/device-tree/model")  # what a Raspberry Pi says of itself
CPU_INFO = Path("/proc/cpuinfo")


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
        For each phase: its precision and shape, the rounds, and what `compare` says of each graph.
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


def told(machine: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What was measured, line by line, and on which machine."""
    yield ", ".join(f"{name} {value}" for name, value in machine.items())
    for entry in measured:
        for name, graph in entry["graphs"].items():
            line = f"{entry['precision']} {entry['phase']} ({entry['tokens']} tokens after {entry['past']}), {name}: "
            line += f"{graph['milliseconds']:.3f} ms"
            if name != BASE:
                low, high = graph["interval"]
                line += f", {graph['ratio']:.4f} x {BASE} (95 % interval {low:.4f} to {high:.4f})"
            yield line


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Keep this process on its first ``threads`` CPUs (``None`` where the system cannot), and collect no garbage."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    chosen = sorted(allowed)[:threads] if allowed else None
    gc.collect()
    gc.disable()
    try:
        if chosen:
            os.sched_setaffinity(0, chosen)
        yield chosen
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)
        gc.enable()


def interleaved(runs: Mapping[str, Callable[[], None]], seconds: float) -> dict[str, Array]:
    """Time every run in rounds A B C C B A, so that a slow moment or a drift of the machine hits all alike.

    Args:
        runs: What is timed, by name.
        seconds: About how long all rounds together take.

    Returns:
        For each run its seconds in each round, the mean of the two, ``(rounds,)``.
    """
    for _ in range(WARM_UP):
        for run in runs.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    there_and_back = [*runs, *reversed(list(runs))]
    end = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() > end:
            break
        taken = dict.fromkeys(runs, 0.0)
        for name in there_and_back:
            start = time.perf_counter()
            runs[name]()
            taken[name] += (time.perf_counter() - start) / 2
        for name, value in taken.items():
            times[name].append(value)
    return {name: np.array(taken) for name, taken in times.items()}


def compare(openings: Sequence[Mapping[str, Array]], base: str) -> dict[str, dict[str, Any]]:
    """Each run's median time and, against ``base``, the median over all rounds of the ratio within a round.

    The interval is a bootstrap in two stages (percentiles; Davison and Hinkley 1997, section 3.8): openings are drawn,
    then rounds within each. An opening decides where the weights lie in memory, which alone can make one of two equal
    graphs slower for as long as it is open, so rounds of one opening are not independent.

    Args:
        openings: The times of `interleaved`, each time that the graphs were opened anew.
        base: The name of the run that the others are compared with.

    Returns:
        For each run ``milliseconds``; for all but the base also ``ratio`` and ``interval`` (95 %).
    """
    generator = np.random.default_rng(0)
    measured: dict[str, dict[str, Any]] = {}
    for name in openings[0]:
        measured[name] = {"milliseconds": float(np.median(np.concatenate([times[name] for times in openings])) * 1000)}
        if name != base:
            ratios = [times[name] / times[base] for times in openings]
            resampled = []
            for _ in range(RESAMPLES):
                drawn = [ratios[number] for number in generator.integers(len(ratios), size=len(ratios))]
                resampled.append(np.median(np.concatenate([generator.choice(one, len(one)) for one in drawn])))
            outside = (1 - CONFIDENCE) / 2
            interval = np.quantile(resampled, [outside, 1 - outside])
            measured[name] |= {"ratio": float(np.median(np.concatenate(ratios))), "interval": interval.tolist()}
    return measured


def device() -> dict[str, Any]:
    """What the machine says it is, and what ran on it. Nothing is guessed."""
    return {
        "machine": DEVICE_TREE.read_text().strip("\0\n ") if DEVICE_TREE.is_file() else platform.machine(),
        "cpu": _cpu_model(),
        "cores": cpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),  # noqa: UP017  (a bundle's Python may be old)
    }


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
