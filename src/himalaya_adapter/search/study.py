"""One study that several processes share and restarts continue: who does which trial, and none twice."""

import copy
import re
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.pruners import MedianPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from himalaya_adapter import stream_metrics
from himalaya_adapter.documents import document_text
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.keys import CONFIG_FILE, check_folder, check_same, flattened, searched_keys
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.storage import delete_folder, write_atomic

STUDY = "study.db"
CONFIG = "config"  # the study's attribute that says whose it is
REASON = "reason"
SAME_AS = "same_as"
MAY_CHANGE = ("optuna.n_trials", "optuna.storage")
DRAWS = 20  # of values that no trial has had, before one that repeats a finished trial is taken
PASSWORD = re.compile(r"(?<=:)[^:@/]+(?=@)")


class SharedStudy:
    """The study of a search and the locks that its processes share.

    A process holds ``lock`` while it looks for its next trial, and from then on that trial's own lock until it has the
    next one. The operating system frees both however the process ends, so a trial that is running and free was left
    by a process that is gone. All processes must see the same folder.

    Args:
        folder: ``<results_dir>/<run_id>_search``.
        run: The run that is searched.
    """

    def __init__(self, folder: Path, run: RunConfig) -> None:
        self.folder = folder
        self.run = run
        self.keys = hyper_parameters(run)
        self.distributions = {name: values.distribution() for name, values in run.optuna.search_space.items()}
        self.direction = direction_of(run)
        self._locks = folder.with_name(f".{folder.name}.locks")  # beside the folder, which `overwrite` deletes
        self._locks.mkdir(parents=True, exist_ok=True)
        self._trial_lock: FileLock | None = None
        self.lock = FileLock(self._locks / "study.lock")

    def begin(self, *, overwrite: bool) -> None:
        """Open the study or create it. The caller holds ``lock``.

        Args:
            overwrite: Delete what an earlier search has left.

        Raises:
            HimalayaError: The study belongs to another config, whose first differing key the message names; the folder
                is no search's; the storage cannot be opened; or others work on what is to be deleted.
        """
        check_folder(self.folder, self.run.run_id, "search", STUDY)
        if overwrite:
            self._delete_folder()
        storage = self._storage()
        self.study = self._opened(storage)
        if overwrite:
            optuna.delete_study(study_name=self.run.run_id, storage=storage)
            self.study = self._opened(storage)
        config = flattened(asdict(self.run)) | {"optuna.direction": self.direction}
        now = {key: value for key, value in config.items() if key not in MAY_CHANGE}
        if CONFIG not in self.study.user_attrs:
            self.study.set_user_attr(CONFIG, now)
        check_same(self.study.user_attrs[CONFIG], now, f"the study of {self.folder}", "search")
        begun = self.folder / CONFIG_FILE
        if not begun.is_file():
            run = replace(self.run, optuna=replace(self.run.optuna, storage=None))  # it may hold a password
            write_atomic(begun, document_text(asdict(run)))

    def trials(self) -> list[FrozenTrial]:
        """All trials so far."""
        return self.study.get_trials(deepcopy=False)

    def values(self, trial: FrozenTrial | Trial) -> dict[str, Any]:
        """A trial's values by the names of the hyper-parameters."""
        return {name: one.value(trial.params[name]) for name, one in self.run.optuna.search_space.items()}

    def take(self) -> Trial | None:
        """The next trial of this process, whose lock it then holds: one that was left, else a new one.

        A trial with the values of a finished one gets its result at once. The caller holds ``lock``.

        Returns:
            ``None`` if there is nothing to do, or nothing that the other processes are not already doing.
        """
        self.release()
        while True:
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and self._hold(self._locks / f"trial_{trial.number}.lock"):
                    return Trial(self.study, trial._trial_id)  # the way in which Optuna itself makes one
            if len(trials) >= (self.run.optuna.n_trials or 0):
                return None
            params, like = self._draw(trials)
            result: dict[str, Any] = {"state": TrialState.RUNNING}
            if like is not None:
                if not like.state.is_finished():
                    return None  # its process will take the repetition, too
                attributes = {**like.user_attrs, SAME_AS: like.user_attrs.get(SAME_AS, like.number)}
                result = {"state": like.state, "value": like.value, "user_attrs": attributes}
                result["intermediate_values"] = like.intermediate_values
            self.study.add_trial(optuna.create_trial(params=params, distributions=self.distributions, **result))

    def release(self) -> None:
        """Let go of the trial."""
        if self._trial_lock is not None:
            self._trial_lock.release()

    def _hold(self, path: Path) -> bool:
        """Try to take the lock of a trial."""
        self._trial_lock = FileLock(path)
        with suppress(Timeout):
            self._trial_lock.acquire(timeout=0)
        return self._trial_lock.is_locked

    def _draw(self, trials: list[FrozenTrial]) -> tuple[dict[str, Any], FrozenTrial | None]:
        """Values for a new trial, and the trial that already has them, a finished one if possible.

        They are drawn in a copy of the study in memory: the trial then enters the storage whole, in one record. The
        generator is seeded with the trial's number, so that a search that was interrupted draws what it would have.
        """
        repeated: list[FrozenTrial] = []
        for attempt in range(DRAWS):
            seeds = np.random.SeedSequence([self.run.training.seed, len(trials), attempt])
            sampler = optuna.samplers.TPESampler(seed=int(seeds.generate_state(1)[0]), constant_liar=True)
            in_memory = optuna.create_study(direction=self.direction, sampler=sampler)
            in_memory.add_trials(trials)
            params = in_memory.ask(self.distributions).params
            like = [trial for trial in trials if trial.params == params]
            if not like:
                return params, None
            repeated += like
        first = next((trial for trial in repeated if trial.state.is_finished()), repeated[0])
        return first.params, first

    # Opening ---------------------------------------------------------------------------------------------------

    def _storage(self) -> BaseStorage:
        url = self.run.optuna.storage
        if url is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{self.folder / STUDY}"
        try:
            return optuna.storages.get_storage(url)
        except Exception as error:  # whatever the database and its driver raise
            reason = PASSWORD.sub("…", str(error).strip().split("\n")[0])
            raise HimalayaError(
                f"optuna.storage={PASSWORD.sub('…', url)} cannot be opened ({reason}): expected the URL of a "
                "database, such as sqlite:///study.db; a damaged study.db is deleted by overwrite=true"
            ) from error

    def _opened(self, storage: BaseStorage) -> optuna.Study:
        study = optuna.create_study(
            study_name=self.run.run_id,
            storage=storage,
            direction=self.direction,
            pruner=LatestMedianPruner(),
            load_if_exists=True,
        )
        if CONFIG not in study.user_attrs and study.get_trials(deepcopy=False):
            raise HimalayaError(
                f"optuna.storage holds a study '{self.run.run_id}' of something else: choose another run_id"
            )
        return study

    def _delete_folder(self) -> None:
        for path in self._locks.glob("trial_*.lock"):
            if not self._hold(path):
                raise HimalayaError(f"another process works on {self.folder}: end it before overwrite=true")
            self.release()
        delete_folder(self.folder)


class LatestMedianPruner(MedianPruner):
    """Stops a trial whose measure of the tasks so far is below the median of the finished trials after that task.

    Optuna's rule (Golovin et al., 2017, "Google Vizier") looks at the best that a trial has reported so far, for
    losses that come down in zigzag. An area under retained accuracy falls only with forgetting, and a trial that did
    well on its first task must not be kept for it: only the latest value counts here.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to be stopped."""
        step = trial.last_step
        if step is None:
            return False
        latest = copy.copy(trial)
        latest.intermediate_values = {step: trial.intermediate_values[step]}
        return super().prune(study, latest)


def hyper_parameters(run: RunConfig) -> dict[str, str]:
    """The keys that a search of a checked run varies, by their names in ``optuna.search_space``.

    Raises:
        HimalayaError: No search space, or a key that the search sets itself.
    """
    if not run.optuna.search_space:
        raise HimalayaError(
            f"run '{run.run_id}' has no optuna.search_space, so there is nothing to search; for example "
            "optuna.search_space.learning_rate='{type: loguniform, low: 1e-5, high: 1e-2}'"
        )
    keys = searched_keys(run)
    for name, key in keys.items():
        if key in ("run_id", "evaluation.primary_metric", *values_of_trials(run)):
            raise HimalayaError(f"optuna.search_space.{name} means {key}, which a search sets itself: delete it")
    return keys


def values_of_trials(run: RunConfig) -> dict[str, Any]:
    """What all trials have of the search and not of the run, by the keys of the config.

    A trial learns the stream of the search, whose tasks and languages are its own, and is scored on its validation
    items, in every row, so that it can be stopped after any task. It neither searches nor logs, and measures no
    latency.
    """
    return {
        **{"dataset.name": run.optuna.stream, "dataset.num_tasks": None, "dataset.languages": None},
        **{"evaluation.split": "validation", "evaluation.rows": "all", "evaluation.secondary_metric": None},
        **{"training.report_to": "none", "optuna": {}},
    }


def direction_of(run: RunConfig) -> Literal["maximize", "minimize"]:
    """As the run says, else what is better of its primary metric."""
    lower = run.evaluation.primary_metric in stream_metrics.LOWER_IS_BETTER
    return run.optuna.direction or ("minimize" if lower else "maximize")
