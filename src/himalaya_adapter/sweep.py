"""Many runs from one line: Hydra's sweeper makes the jobs, its launcher runs them, here or on a cluster."""

import os
import re
import sys
from collections.abc import Sequence

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.report import write_run_report
from himalaya_adapter.training import run_stream

NO_NAME = re.compile(r"[^\w.+-]")  # what a folder's name is better without
COMMAND_KEYS = ("run", "results_dir", "mode", "overwrite")  # words that tell two jobs apart by themselves, or never


def sweep(words: Sequence[str]) -> list[str]:
    """Run every combination of comma-separated values, as in ``training.seed=0,1,2``.

    Args:
        words: Those of ``himalaya run``, each with one value or several, and Hydra's own such as
            ``hydra/launcher=submitit_slurm``. A run that ends with a mistake does not stop the others.

    Returns:
        One line for each run of this process that ended with a mistake.
    """
    # The keys only: whether values fit them is `compose_run`'s to say, job by job.
    ConfigStore.instance().store("run_config", node=OmegaConf.to_container(OmegaConf.structured(RunConfig)))
    failures: list[str] = []
    here = os.getpid()

    def job(_: DictConfig) -> None:
        chosen = [word.removeprefix("+") for word in HydraConfig.get().overrides.task]
        try:
            launch = compose_run([*chosen, *_run_id(words, chosen)])
            folder = run_stream(launch.run, launch.results_dir, overwrite=launch.overwrite)
            if not (folder / "report.html").is_file():
                write_run_report(folder)
            print(folder / "report.html")
        except HimalayaError as error:
            if os.getpid() != here:
                raise  # in another process, or on another machine: Hydra's launcher tells of it
            failures.append(f"{' '.join(chosen)}: {error}")

    arguments, sys.argv = sys.argv, ["himalaya sweep", "--multirun", *words]  # Hydra reads them there
    try:
        hydra.main(config_path=str(CONF / "sweep"), config_name="sweep", version_base="1.3")(job)()
    finally:
        sys.argv = arguments
    return failures


def _run_id(words: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """A run id of its own for each job, if the line names none: the run's, and what others of the line do not have."""
    parts = []
    for word in chosen:
        key, _, value = word.partition("=")
        if not {word, f"+{word}"} & set(words) and key not in COMMAND_KEYS:
            parts.append(f"{key.rpartition('.')[2]}={NO_NAME.sub('-', value)}")
    if not parts or any(word.startswith("run_id=") for word in chosen):
        return []
    return [f"run_id={'_'.join([compose_run(chosen).run.run_id, *parts])}"]
