"""One trial: a run with the trial's values, on the search's stream, scored on its validation items."""

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial, TrialState
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.evaluation.metrics import MEASURES
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.search.space import SearchedKey, with_values
from himalaya_adapter.search.study import REASON
from himalaya_adapter.storage import read_json
from himalaya_adapter.training import run_stream

# What they say of every task, or would say again of every trial; a search says one line a trial.
TALKATIVE = (
    "himalaya_adapter.training.progress",
    "himalaya_adapter.training.stream_runner",
    "himalaya_adapter.training.preconditions",
)


def run_trial(trial: Trial, run: RunConfig, keys: Sequence[SearchedKey], trials: Path, tasks: int) -> None:
    """Run a trial, from where another process has left it, and tell the study how it ended.

    Args:
        trial: Its values are known.
        run: What `trial_run` makes of the searched run.
        keys: The hyper-parameters.
        trials: Folder of the trials' runs, which are named after their numbers.
        tasks: Number of tasks of the search's stream; after the last one there is nothing left to save.
    """
    measure = MEASURES[run.evaluation.primary_metric]
    reported = trial.storage.get_trial(trial._trial_id).intermediate_values
    values = {one.key: one.value(trial.params[one.name]) for one in keys}

    def after_task(rows: list[list[float | None]]) -> None:
        step = len(rows)
        if any(later > step for later in reported):
            return  # another process reported this, and went on
        if step not in reported:
            trial.report(measure(rows), step)
        if step < tasks and trial.should_prune():
            raise optuna.TrialPruned

    try:
        run = with_values(run, {"run_id": str(trial.number), **values})
        with quiet():
            folder = run_stream(run, trials, after_task=after_task)
    except optuna.TrialPruned:
        trial.study.tell(trial, state=TrialState.PRUNED)
    except (HimalayaError, torch.OutOfMemoryError) as error:
        trial.set_user_attr(REASON, one_line(error))
        trial.study.tell(trial, state=TrialState.FAIL)
    else:
        metrics: Mapping[str, Any] = read_json(folder / "metrics.json")
        trial.study.tell(trial, metrics[run.evaluation.primary_metric])
    gc.collect()  # the model, before the next one is loaded


@contextmanager
def quiet() -> Iterator[None]:
    """Hush what a run says of each task."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
