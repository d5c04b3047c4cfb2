"""How long it takes from ``git clone`` to the first own task learnt, as the README says it: every step by itself.

Run: python benchmarks/first_task.py [--output FILE.json]

Clones this repository, makes a virtual environment, installs ``.[lab]`` without pip's cache, learns
``docs/examples/tickets.csv`` with an empty cache (so the backbone is fetched, too), and asks. Where other processes
share the machine, the processor's seconds say more than those of the clock. Downloads count as fast as they came.
"""

import argparse
import datetime
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from himalaya_adapter.storage import CACHE_VARIABLE, write_json
from himalaya_adapter.training.environment import processor_name

ROOT = Path(__file__).parents[1]
QUESTION = "The projector in room 40 is broken"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "first_task.json")
    output = parser.parse_args().output.resolve()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        binaries = place / "himalaya" / ".venv" / "bin"
        himalaya, data = str(binaries / "himalaya"), "docs/examples/tickets.csv"
        template = ["--prompt", r"Ticket: {text}\nTeam:", "--target", "{team}"]
        steps = {
            "clone": ["git", "clone", "--quiet", str(ROOT), "himalaya"],
            "environment": [sys.executable, "-m", "venv", "himalaya/.venv"],
            "install": [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--no-cache-dir", "-e", ".[lab]"],
            "learn": [himalaya, "learn", "support", data, "--task", "tickets", *template],
            "ask": [himalaya, "generate", "support", QUESTION, "--task", "tickets"],
        }
        measured = {name: _measured(name, words, place) for name, words in steps.items()}
    write_json(
        output,
        {
            "date": datetime.date.today().isoformat(),
            "cpu": processor_name(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "load": round(os.getloadavg()[2], 1),  # processes that wanted a core, over fifteen minutes
            "steps": measured,
        },
    )


def _measured(name: str, words: list[str], place: Path) -> dict[str, float]:
    """Seconds on the clock and of the processor."""
    folder = place / "himalaya" if name in ("install", "learn", "ask") else place
    environment = os.environ | {CACHE_VARIABLE: str(place / "cache")}
    environment.pop("PYTHONPATH", None)
    start, used = time.perf_counter(), _used()
    subprocess.run(words, cwd=folder, env=environment, check=True)
    return {"seconds": round(time.perf_counter() - start, 1), "processor": round(_used() - used, 1)}


def _used() -> float:
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return of_children.ru_utime + of_children.ru_stime


if __name__ == "__main__":
    main()
