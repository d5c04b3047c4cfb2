"""A trial is stopped for what it retains now, not for how well it began."""

import optuna
import pytest
from optuna.trial import TrialState

from himalaya_adapter.search.study import LatestMedianPruner


def study_of(finished: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", pruner=LatestMedianPruner())
    for number in range(finished):
        areas = {1: 0.5 + number / 100, 2: 0.5 + number / 100}
        study.add_trial(optuna.create_trial(state=TrialState.COMPLETE, value=0.5, intermediate_values=areas))
    return study


@pytest.mark.parametrize(
    ("areas", "stopped"),
    [((0.51,), True), ((0.53,), False), ((0.9, 0.51), True), ((0.51, 0.53), False)],
)
def test_below_the_median_of_the_finished_trials_it_is_stopped(areas: tuple[float, ...], stopped: bool) -> None:
    trial = study_of(5).ask()
    for step, area in enumerate(areas, start=1):
        trial.report(area, step)
    assert trial.should_prune() == stopped


def test_the_first_trials_are_never_stopped() -> None:
    trial = study_of(4).ask()
    trial.report(0.0, 1)
    assert not trial.should_prune()
