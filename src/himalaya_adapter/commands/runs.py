"""Runs: learn a stream, search and sweep, and what is read of runs afterwards."""

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from himalaya_adapter.commands import Figures, Overrides
from himalaya_adapter.errors import HimalayaError, one_line, told
from himalaya_adapter.names import check_name

NO_NAME = re.compile(r"[^\w.+-]")  # what a folder's name is better without
COMMAND_KEYS = ("run", "results_dir", "mode", "overwrite")  # words that tell two jobs apart by themselves, or never
OF_HYDRA = re.compile(r"hydra[./]")
app = typer.Typer()


@app.command()
def run(overrides: Overrides) -> None:
    """Learn a stream; the same command continues an interrupted run.

    For example: himalaya run run=demo-himalaya mode=trial results_dir=outputs
    """
    from himalaya_adapter.experiments import compose_run

    launch = compose_run(overrides)  # a wrong word is told at once, before what takes seconds to import

    from himalaya_adapter.deploy.run_latency import measure_secondary_metric
    from himalaya_adapter.report import write_run_report
    from himalaya_adapter.training.stream_runner import run_stream

    folder = run_stream(launch.run, launch.results_dir, overwrite=launch.overwrite)
    if os.environ.get("RANK", "0") != "0":
        return  # one process of several: the first one reports
    measured = measure_secondary_metric(launch.run, folder)
    if measured or not (folder / "report.html").is_file():
        write_run_report(folder)
    print(folder / "report.html")


@app.command()
def search(overrides: Overrides) -> None:
    """Search the run's hyper-parameters; several processes may share it, and it continues, too.

    For example: himalaya search run=demo-lora optuna.n_trials=20 results_dir=outputs
    """
    from himalaya_adapter.experiments import compose_run
    from himalaya_adapter.report import write_search_report
    from himalaya_adapter.search import run_search

    launch = compose_run(overrides)
    print(write_search_report(run_search(launch.run, launch.results_dir, overwrite=launch.overwrite)))


@app.command()
def sweep(overrides: Overrides) -> None:
    """Many runs from one line, as in training.seed=0,1,2, through Hydra's launchers."""
    import hydra
    from hydra.errors import HydraException

    from himalaya_adapter.experiments.composition import CONF
    from himalaya_adapter.experiments.overrides import combinations, read_overrides

    own = [word for word in overrides if not OF_HYDRA.match(word)]
    lines = combinations(own)
    places = Counter(filter(None, (_place(own, line) for line in lines)))
    if twice := [place for place, count in places.items() if count > 1]:
        raise HimalayaError(f"several runs of a sweep have the folder {twice[0]}: give no run_id, and no value twice")
    failures: list[str] = []
    here = os.getpid()

    def job(chosen: Any) -> None:
        line = lines[chosen.job]
        try:
            run([*line, *run_id(own, line)])
        except Exception as error:
            reason = told(error)
            if reason is None or os.getpid() != here:
                raise  # in another process, or on another machine: Hydra's launcher tells of it
            failures.append(f"{' '.join(line)}: {reason}")

    numbers = f"job={','.join(map(str, range(len(lines))))}"
    results = os.path.expanduser(read_overrides(lines[0]).get("results_dir", "outputs")).replace("'", r"\'")
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


def _place(words: Sequence[str], line: Sequence[str]) -> Path | None:
    """The folder of a job; none of one with a mistake, which is told when it is that job's turn."""
    from himalaya_adapter.experiments import compose_run

    with suppress(HimalayaError):
        launch = compose_run([*line, *run_id(words, line)])
        return launch.results_dir / launch.run.run_id
    return None


@app.command()
def budget(overrides: Overrides) -> None:
    """Bytes, parameters and operations of a run's adapter; no weights needed."""
    from rich.console import Console

    from himalaya_adapter.budget import check_size, count_budget, count_work
    from himalaya_adapter.experiments import compose_run
    from himalaya_adapter.experiments.validation import check_run
    from himalaya_adapter.report.budget_tables import budget_tables

    config = compose_run(overrides).run
    check_run(config)
    counted = count_budget(config)
    for table in budget_tables(config, counted, count_work(config)):
        Console(markup=False, emoji=False).print(table)
    if config.model.adapter.total_parameter_budget_mb is not None:
        check_size(counted.stored, config.model.adapter.total_parameter_budget_mb)


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="The folder of the runs, which a run calls results_dir.")],
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_ID]...", help="The runs (default: all that are finished).")
    ] = None,
    figures: Figures = False,
) -> None:
    """Compare finished runs of one stream."""
    from himalaya_adapter.report import finished_runs, write_comparison

    for run_id in run_ids or ():
        check_name(run_id, "run")
    print(write_comparison(folder, run_ids or finished_runs(folder), folder / "comparison", figures=figures))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run or of a search.")],
    figures: Figures = False,
) -> None:
    """Write the report of a run or a search anew."""
    from himalaya_adapter.report import write_run_report, write_search_report

    write = write_search_report if (folder / "trials.json").is_file() else write_run_report
    print(write(folder, figures=figures))


@app.command("list")
def list_names(what: Literal["runs", "methods", "backbones", "streams", "keys"]) -> None:
    """What comes with the package: runs, methods, backbones, streams, or the keys of a run."""
    from himalaya_adapter.backbones.catalogue import BACKBONES, PackagedGguf
    from himalaya_adapter.experiments import RunConfig, compose_run, run_names
    from himalaya_adapter.experiments.schema import keys_of
    from himalaya_adapter.registry import METHODS
    from himalaya_adapter.streams.catalogue import read_definition, stream_names

    if what == "runs":
        for name in run_names():
            config = compose_run([f"run={name}"]).run
            print(f"{name}: {config.method_name} on {config.dataset.name}, {config.model.backbone.name}")
    elif what == "methods":
        print(*METHODS, "and any other method of PEFT, by the name of its PeftType", sep="\n")
    elif what == "backbones":
        for name, source in BACKBONES.items():
            terms = source.terms if isinstance(source, PackagedGguf) else None
            print(f"{name} (under terms of use: {terms})" if terms else name)
        print("and any causal language model, by its folder or its id on the hub")
    elif what == "streams":
        for name in stream_names():
            print(f"{name}: {read_definition(name).description}")
    else:
        for key in keys_of(RunConfig).values():
            print(f"{key.path} ({key.expected}; default {key.default_text}): {key.meaning.replace('``', '')}")
