"""How much longer one graph takes than another: interleaved in one process, as an interval of the ratio."""

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

from .graph import Array

WARM_UP = 2
FEWEST_ROUNDS, MOST_ROUNDS = 3, 1000
RESAMPLES = 1000
CONFIDENCE = 0.95
DEVICE_TREE = Path("/proc/device-tree/model")  # what a Raspberry Pi says of itself
CPU_INFO = Path("/proc/cpuinfo")


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
