"""Many runs from one line: each combination of its values is a job of Hydra's launcher, here or on a cluster."""

import os
import re
import sys
from collections.abc import Sequence

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from himalaya_adapter.deploy.run_latency import measure_secondary_metric
from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.overrides import combinations
from himalaya_adapter.report import write_run_report
from himalaya_adapter.training import run_stream

NO_NAME = re.compile(r"[^\w.+-]")  # what a folder's name is better without
COMMAND_KEYS = ("run", "results_dir", "mode", "overwrite")  # words that tell two jobs apart by themselves, or never
OF_HYDRA = re.compile(r"hydra[./]")


def sweep(words: Sequence[str]) -> list[str]:
    """Run every combination of comma-separated values, as in ``training.seed=0,1,2``.

    Args:
        words: Those of ``himalaya run``, each with one value or several, and Hydra's own such as
            ``hydra/launcher=submitit_slurm``. A run that ends with a mistake does not stop the others.

    Returns:
        One line for each run of this process that ended with a mistake.

    Raises:
        HimalayaError: A word of Hydra's is wrong.
    """
    own = [word for word in words if not OF_HYDRA.match(word)]
    lines = combinations(own)
    failures: list[str] = []
    here = os.getpid()

    def job(chosen: DictConfig) -> None:
        try:
            line = lines[chosen.job]
            launch = compose_run([*line, *_run_id(own, line)])
            folder = run_stream(launch.run, launch.results_dir, overwrite=launch.overwrite)
            measured = measure_secondary_metric(launch.run, folder)
            if measured or not (folder / "report.html").is_file():
                write_run_report(folder)
            print(folder / "report.html")
        except HimalayaError as error:
            if os.getpid() != here:
                raise  # in another process, or on another machine: Hydra's launcher tells of it
            failures.append(f"{' '.join(lines[chosen.job])}: {error}")

    numbers = f"job={','.join(map(str, range(len(lines))))}"
    results = next((word.removeprefix("results_dir=") for word in own if word.startswith("results_dir=")), "outputs")
    of_hydra = [word for word in words if OF_HYDRA.match(word)]
    told = ["--multirun", numbers, f"hydra.sweep.dir='{results}/.sweep'", *of_hydra]
    arguments, sys.argv = sys.argv, ["himalaya sweep", *told]  # Hydra reads them there
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints an error itself, and ends the process
    try:
        hydra.main(config_path=str(CONF / "sweep"), config_name="sweep", version_base="1.3")(job)()
    except HydraException as error:
        raise HimalayaError(f"Hydra: {one_line(error)}") from error
    finally:
        sys.argv = arguments
    return failures


def _run_id(words: Sequence[str], line: Sequence[str]) -> list[str]:
    """A run id of its own for each job, if the line names none: the run's, and what others of the line do not have."""
    parts = []
    for word in line:
        key, _, value = word.partition("=")
        if word not in words and key not in COMMAND_KEYS:
            parts.append(f"{key.rpartition('.')[2]}={NO_NAME.sub('-', value)}")
    if not parts or any(word.startswith("run_id=") for word in line):
        return []
    return [f"run_id={'_'.join([compose_run(line).run.run_id, *parts])}"]
