"""When a trial is stopped early."""

import copy

from optuna import Study
from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial


class LatestMedianPruner(MedianPruner):
    """Stops a trial whose measure of the tasks so far is below the median of the finished trials after that task.

    Optuna's rule (Golovin et al., 2017, "Google Vizier") looks at the best that a trial has reported so far, for
    losses that come down in zigzag. An area under retained accuracy falls only with forgetting, and a trial that did
    well on its first task must not be kept for it: only the latest value counts here.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to be stopped."""
        step = trial.last_step
        if step is None:
            return False
        latest = copy.copy(trial)
        latest.intermediate_values = {step: trial.intermediate_values[step]}
        return super().prune(study, latest)
