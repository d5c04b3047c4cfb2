"""One trial: a run with the trial's values, on the search's stream, scored on its validation items."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import torch
from optuna.trial import FrozenTrial, Trial, TrialState
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.evaluation.metrics import MEASURES
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.validation import with_values
from himalaya_adapter.search.study import REASON, SharedStudy
from himalaya_adapter.storage import read_json
from himalaya_adapter.training.stream_runner import run_stream


def run_trial(shared: SharedStudy, trial: Trial, base: RunConfig, tasks: int) -> FrozenTrial:
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
        with quiet():
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
def quiet() -> Iterator[None]:
    """Hush what a run says of each task, and would say again in every trial."""
    logging.disable(logging.WARNING)
    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()
        logging.disable(logging.NOTSET)
