"""One study that several processes share and restarts continue: who does which trial, and none twice."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.keys import check_same, flattened
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.search.pruning import LatestMedianPruner
from himalaya_adapter.search.space import SearchedKey, direction_of
from himalaya_adapter.storage import delete_folder, is_foreign, write_atomic

logger = logging.getLogger(__name__)
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
        keys: Its hyper-parameters.
    """

    def __init__(self, folder: Path, run: RunConfig, keys: Sequence[SearchedKey]) -> None:
        self.folder = folder
        self.run = run
        self.distributions = {one.name: one.distribution for one in keys}
        self.direction = direction_of(run)
        self._locks = folder.with_name(f".{folder.name}.locks")  # beside the folder, which `overwrite` deletes
        self._trial_lock: FileLock | None = None
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HimalayaError(f"cannot make the search's folder {folder}: {error.strerror}") from error
        self.lock = FileLock(self._locks / "study.lock")

    def begin(self, *, overwrite: bool) -> None:
        """Open the study or create it. The caller holds ``lock``.

        Args:
            overwrite: Delete what an earlier search has left.

        Raises:
            HimalayaError: The study belongs to another config, whose first differing key the message names; the folder
                is no search's; the storage cannot be opened; or others work on what is to be deleted.
        """
        begun = self.folder / "config.yaml"
        if is_foreign(self.folder, begun.name, STUDY):
            raise HimalayaError(
                f"{self.folder} is no search's folder (no config.yaml): choose another results_dir or run_id"
            )
        if overwrite:
            self._delete_folder()
        storage = self._storage()
        name = self.run.run_id
        pruner = LatestMedianPruner()
        try:
            study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
            if CONFIG not in study.user_attrs and study.get_trials(deepcopy=False):
                raise HimalayaError(f"optuna.storage holds a study '{name}' of something else: choose another run_id")
            if overwrite:
                optuna.delete_study(study_name=name, storage=storage)
                raise KeyError(name)
        except KeyError:  # as Optuna says that there is none
            study = optuna.create_study(storage=storage, study_name=name, direction=self.direction, pruner=pruner)
        self.study = study
        self._check_same()
        if not begun.is_file():
            run = replace(self.run, optuna=replace(self.run.optuna, storage=None))  # it may hold a password
            write_atomic(begun, yaml.safe_dump(asdict(run), sort_keys=False, allow_unicode=True))

    def take(self) -> Trial | None:
        """The next trial of this process, whose lock it then holds: one that was left, else a new one.

        A trial with the values of a finished one gets its result at once. The caller holds ``lock``.

        Returns:
            ``None`` if there is nothing to do, or nothing that the other processes are not already doing.
        """
        self.release()
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and self._lock_trial(trial.number):
                return self._live(trial)
        while len(self._trials()) < (self.run.optuna.n_trials or 0):
            drawn, like = self._draw()
            if like is None:
                self.study.add_trial(self._new(drawn, TrialState.RUNNING))
                trial = self._trials()[-1]
                if not self._lock_trial(trial.number):
                    raise HimalayaError(f"another process holds trial {trial.number} of {self.folder}: end it")
                return self._live(trial)
            if not like.state.is_finished():
                return None  # its process will take the repetition, too
            self.study.add_trial(
                self._new(
                    drawn,
                    like.state,
                    value=like.value,
                    intermediate_values=like.intermediate_values,
                    user_attrs={**like.user_attrs, SAME_AS: like.user_attrs.get(SAME_AS, like.number)},
                )
            )
        return None

    def release(self) -> None:
        """Let go of the trial."""
        if self._trial_lock is not None:
            self._trial_lock.release()
            self._trial_lock = None

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _live(self, trial: FrozenTrial) -> Trial:
        return Trial(self.study, trial._trial_id)  # the way in which Optuna itself makes one

    def _lock_trial(self, number: int) -> bool:
        lock = FileLock(self._locks / f"trial_{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._trial_lock = lock
        return True

    def _draw(self) -> tuple[Mapping[str, Any], FrozenTrial | None]:
        """Values for a new trial, and the trial that already has them, a finished one if possible.

        They are drawn in a copy of the study in memory: the trial then enters the storage whole, in one record. The
        generator is seeded with the trial's number, so that a search that was interrupted draws what it would have.
        """
        trials = self._trials()
        repeated: tuple[Mapping[str, Any], FrozenTrial] | None = None
        for attempt in range(DRAWS):
            seeds = np.random.SeedSequence([self.run.training.seed, len(trials), attempt])
            sampler = optuna.samplers.TPESampler(seed=int(seeds.generate_state(1)[0]), constant_liar=True)
            copy = optuna.create_study(direction=self.direction, sampler=sampler)
            copy.add_trials(trials)
            drawn = copy.ask(self.distributions).params
            like = [trial for trial in trials if trial.params == drawn]
            if not like:
                return drawn, None
            finished = next((trial for trial in like if trial.state.is_finished()), None)
            if repeated is None or (finished and not repeated[1].state.is_finished()):
                repeated = drawn, finished or like[0]
        assert repeated is not None
        return repeated

    def _new(self, values: Mapping[str, Any], state: TrialState, **result: Any) -> FrozenTrial:
        return optuna.create_trial(params=dict(values), distributions=self.distributions, state=state, **result)

    # Opening ---------------------------------------------------------------------------------------------------

    def _storage(self) -> BaseStorage:
        url, own = self.run.optuna.storage, self.folder / STUDY
        if url is None:
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return optuna.storages.get_storage(url or f"sqlite:///{own}")
        except Exception as error:  # whatever the database and its driver raise
            reason = PASSWORD.sub("…", str(error).strip().split("\n")[0])
            if url is None:
                raise HimalayaError(
                    f"{own} is damaged ({reason}): restore it, or start anew with overwrite=true"
                ) from error
            raise HimalayaError(
                f"optuna.storage={PASSWORD.sub('…', url)} cannot be opened ({reason}): expected the URL of a "
                "database, such as sqlite:///study.db, or null for a file in the search's folder"
            ) from error

    def _check_same(self) -> None:
        """Make the study this config's if it is new."""
        config = flattened(asdict(self.run)) | {"optuna.direction": self.direction}
        now = {key: value for key, value in config.items() if key not in MAY_CHANGE}
        if CONFIG not in self.study.user_attrs:
            self.study.set_user_attr(CONFIG, now)
        check_same(self.study.user_attrs[CONFIG], now, f"the study of {self.folder}", "search")

    def _delete_folder(self) -> None:
        for path in self._locks.glob("trial_*.lock"):
            try:
                with FileLock(path, timeout=0):
                    pass
            except Timeout as error:
                raise HimalayaError(f"another process works on {self.folder}: end it before overwrite=true") from error
        delete_folder(self.folder)
