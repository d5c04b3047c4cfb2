"""Searches hyper-parameters; any number of processes may run the same search, and each may be killed at any moment."""

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from himalaya_adapter.backbones.shape import backbone_shape
from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.evaluation.metrics import MEASURES
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.validation import check_run, with_values
from himalaya_adapter.methods.construction import run_method
from himalaya_adapter.search.results import write_results
from himalaya_adapter.search.study import REASON, SharedStudy, hyper_parameters, values_of_trials
from himalaya_adapter.storage import read_json
from himalaya_adapter.streams import Limits, load_stream
from himalaya_adapter.training.preconditions import announce
from himalaya_adapter.training.stream_runner import run_stream

logger = logging.getLogger(__name__)


def run_search(run: RunConfig, results_dir: Path, *, overwrite: bool = False) -> Path:
    """Search the best values of a run's hyper-parameters; returns the search's folder.

    The same call continues an interrupted search: a trial that a killed process has left is finished first, with its
    values, from where it was. Calls in several processes share the trials. A finished search runs nothing.

    Args:
        run: The run, with its ``optuna`` block.
        results_dir: Where the folder ``<run_id>_search`` lies.
        overwrite: Delete an existing search of this run first.

    Raises:
        HimalayaError: Anything a user can mend, in one line; no trial that did not fail is no result either.
    """
    check_run(run)
    if run.optuna.n_trials is None:
        raise HimalayaError(f"run '{run.run_id}' has no optuna.n_trials; for example optuna.n_trials=20")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise HimalayaError("a trial runs in one process: start the same search several times instead of torchrun")
    # A mistake that every trial would fail of.
    base = with_values(run, values_of_trials(run))
    for name, key in hyper_parameters(run).items():
        _check_any(base, key, run.optuna.search_space[name].outermost())
    backbone_shape(base.model.backbone.name)
    scored = base.dataset.max_test_samples_per_task
    limits = Limits(train=base.dataset.max_samples_per_task, validation=scored, test=scored)
    tasks = len(load_stream(base.dataset.name, limits=limits).tasks)

    announce(base.hardware, searches=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shared = SharedStudy(results_dir / f"{run.run_id}_search", run)
    try:
        with shared.lock:
            shared.begin(overwrite=overwrite)
        while (trial := _next(shared)) is not None:
            _tell(shared, _run_trial(shared, trial, base, tasks))
    except StorageInternalError as error:
        raise HimalayaError(f"optuna.storage failed ({error}); the same command goes on from here") from error
    finally:
        shared.release()
    _conclude(shared)
    return shared.folder


def _check_any(base: RunConfig, key: str, values: Sequence[Any]) -> None:
    """Refuse values of a key of which not one can be run.

    Raises:
        HimalayaError: What is wrong with the first one.
    """
    refused = []
    for value in values:
        try:
            run_method(with_values(base, {key: value}))
        except HimalayaError as error:
            refused.append(error)
    if len(refused) == len(values):
        raise refused[0]


def _next(shared: SharedStudy) -> Trial | None:
    with shared.lock:
        trial = shared.take()
        write_results(shared)
    return trial


def _run_trial(shared: SharedStudy, trial: Trial, base: RunConfig, tasks: int) -> FrozenTrial:
    """Run a trial, from where another process has left it, and tell the study how it ended.

    Args:
        shared: The study.
        trial: Its values are known.
        base: The searched run with the values of all trials.
        tasks: Number of tasks of the search's stream; after the last one there is nothing left to save.
    """
    measure = MEASURES[base.evaluation.primary_metric]
    reported = trial.storage.get_trial(trial._trial_id).intermediate_values
    values = {shared.keys[name]: value for name, value in shared.values(trial).items()}

    def after_task(rows: list[list[float | None]]) -> None:
        step = len(rows)
        if any(later > step for later in reported):
            return  # another process reported this, and went on
        if step not in reported:
            trial.report(measure(rows), step)
        if step < tasks and trial.should_prune():
            raise optuna.TrialPruned

    try:
        run = with_values(base, {"run_id": str(trial.number), **values})
        with _quiet():
            folder = run_stream(run, shared.folder / "trials", after_task=after_task)
    except optuna.TrialPruned:
        ended = shared.study.tell(trial, state=TrialState.PRUNED)
    except (HimalayaError, torch.OutOfMemoryError) as error:
        trial.set_user_attr(REASON, one_line(error))
        ended = shared.study.tell(trial, state=TrialState.FAIL)
    else:
        ended = shared.study.tell(trial, read_json(folder / "metrics.json")[run.evaluation.primary_metric])
    gc.collect()  # the model, before the next one is loaded
    return ended


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush what a run says of each task, and would say again in every trial."""
    logging.disable(logging.WARNING)
    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()
        logging.disable(logging.NOTSET)


def _tell(shared: SharedStudy, trial: FrozenTrial) -> None:
    """Say in one line how a trial ended."""
    ended = trial.user_attrs.get(REASON) or f"{shared.run.evaluation.primary_metric} {trial.value:.4f}"
    values = ", ".join(f"{name}={value}" for name, value in shared.values(trial).items())
    state, of = trial.state.name.lower(), shared.run.optuna.n_trials
    logger.info("trial %d of %d, %s: %s: %s", trial.number, of, values, state, ended)


def _conclude(shared: SharedStudy) -> None:
    """Say what remains to be said when this process finds nothing more to do."""
    trials = shared.trials()
    running = any(trial.state == TrialState.RUNNING for trial in trials)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    if len(failed) == len(trials):
        raise HimalayaError(
            f"all {len(trials)} trials of {shared.folder} failed, the last one: {failed[-1].user_attrs[REASON]}; "
            "mend the run and start anew with overwrite=true"
        )
    if running or len(trials) < (shared.run.optuna.n_trials or 0):
        logger.info("other processes still work on %s; the last one completes the report", shared.folder)
    else:
        logger.info("%s is finished: %d trials (overwrite=true starts it anew)", shared.folder, len(trials))
