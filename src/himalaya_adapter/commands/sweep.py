"""``himalaya sweep``."""

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from himalaya_adapter.commands import Overrides, run
from himalaya_adapter.errors import HimalayaError, one_line, told

CONTINUES = True
NO_NAME = re.compile(r"[^\w.+-]")  # what a folder's name is better without
COMMAND_KEYS = ("run", "results_dir", "mode", "overwrite")  # words that tell two jobs apart by themselves, or never
OF_HYDRA = re.compile(r"hydra[./]")


def command(overrides: Overrides) -> None:
    """Many runs from one line, as in training.seed=0,1,2, through Hydra's launchers."""
    import hydra
    from hydra.errors import HydraException

    from himalaya_adapter.experiments.composition import CONF
    from himalaya_adapter.experiments.overrides import combinations

    own = [word for word in overrides if not OF_HYDRA.match(word)]
    lines = combinations(own)
    failures: list[str] = []
    here = os.getpid()

    def job(chosen: Any) -> None:
        line = lines[chosen.job]
        try:
            run.command([*line, *run_id(own, line)])
        except Exception as error:
            reason = told(error)
            if reason is None or os.getpid() != here:
                raise  # in another process, or on another machine: Hydra's launcher tells of it
            failures.append(f"{' '.join(line)}: {reason}")

    numbers = f"job={','.join(map(str, range(len(lines))))}"
    results = next((word.removeprefix("results_dir=") for word in own if word.startswith("results_dir=")), "outputs")
    of_hydra = [word for word in overrides if OF_HYDRA.match(word)]
    of_launcher = ["--multirun", numbers, f"hydra.sweep.dir='{results}/.sweep'", *of_hydra]
    arguments, sys.argv = sys.argv, ["himalaya sweep", *of_launcher]  # Hydra reads them there
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints an error itself, and ends the process
    try:
        hydra.main(config_path=str(CONF / "sweep"), config_name="sweep", version_base="1.3")(job)()
    except HydraException as error:
        raise HimalayaError(f"Hydra: {one_line(error)}") from error
    finally:
        sys.argv = arguments
    for failure in failures[:-1]:
        print(f"himalaya: {failure}", file=sys.stderr)
    if failures:
        raise HimalayaError(failures[-1])


def run_id(words: Sequence[str], line: Sequence[str]) -> list[str]:
    """A run id of its own for each job, if the line names none: the run's, and what others of the line do not have."""
    from himalaya_adapter.experiments import compose_run

    parts = []
    for word in line:
        key, _, value = word.partition("=")
        if word not in words and key not in COMMAND_KEYS:
            parts.append(f"{key.rpartition('.')[2]}={NO_NAME.sub('-', value)}")
    if not parts or any(word.startswith("run_id=") for word in line):
        return []
    return [f"run_id={'_'.join([compose_run(line).run.run_id, *parts])}"]
