"""Who does which trial, told by the locks alone: two processes' views of one study, without a model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.search.study import SharedStudy
from himalaya_adapter.training.run_store import RunStore

Opened = Callable[..., SharedStudy]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """``opened(*words)`` is what one more process holds of the same study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = []

    def open_one(*words: str, overwrite: bool = False) -> SharedStudy:
        space = "optuna.search_space.lr_scheduler={type: categorical, choices: [linear, cosine]}"
        run = compose_run(["run=lora-package25", "run_id=lora", "optuna.n_trials=4", space, *words]).run
        shared = SharedStudy(tmp_path / "lora_search", run)
        studies.append(shared)
        with shared.lock:
            shared.begin(overwrite=overwrite)
        return shared

    yield open_one
    for shared in studies:
        shared.release()


def test_a_trial_goes_to_the_first_who_comes_when_its_owner_is_gone(opened: Opened) -> None:
    first, second = opened(), opened()
    taken = [first.take(), second.take()]
    assert [trial.number for trial in taken if trial] == [0, 1]
    assert [trial.number for trial in second.study.trials] == [0, 1]
    first.release()  # as the operating system does
    third, fourth = opened(), opened()
    adopted = third.take()
    assert adopted is not None
    assert taken[0] is not None
    assert (adopted.number, adopted.params) == (0, taken[0].params)
    assert fourth.take() is None, "two values and two trials: nothing that is not already being done"
    assert len(third.study.trials) == 2


def test_what_repeats_a_running_trial_is_left_to_its_process(opened: Opened) -> None:
    first, second = opened(), opened()
    trials = first.take(), second.take()
    assert all(trials)
    first.study.tell(0, 0.25)
    assert first.take() is None
    found = second.study.trials
    assert [trial.number for trial in found] == [0, 1, 2, 3]
    assert [trial.value for trial in found] == [0.25, None, 0.25, 0.25]
    assert [trial.user_attrs.get("same_as") for trial in found] == [None, None, 0, 0]


def test_more_trials_may_be_asked_for_later(opened: Opened) -> None:
    space = "optuna.search_space.lr_scheduler={type: categorical, choices: [linear, cosine, constant]}"
    first = opened("optuna.n_trials=1", space)
    assert first.take() is not None
    first.study.tell(0, 0.5)
    assert first.take() is None
    trial = opened("optuna.n_trials=2", space).take()
    assert trial is not None
    assert trial.number == 1
    assert trial.params != first.study.trials[0].params


def test_a_study_of_something_else_in_the_database_is_left_alone(opened: Opened, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=url, study_name="lora")
    study.tell(study.ask(), 1.0)
    with pytest.raises(HimalayaError, match=r"optuna\.storage holds a study 'lora' of something else"):
        opened(f"optuna.storage={url}")
    assert [trial.value for trial in study.trials] == [1.0]


def test_a_run_that_is_called_as_a_search_is_left_alone(opened: Opened, tmp_path: Path) -> None:
    """The folder of a search of ``lora`` and that of a run called ``lora_search`` have one name."""
    config = tmp_path / "lora_search" / "config.yaml"
    config.parent.mkdir()
    config.write_text("run_id: lora_search\n", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(HimalayaError, match=r"lora_search is no search's folder \(no config\.yaml of 'lora'\)"):
            opened(overwrite=overwrite)
    assert [path.name for path in config.parent.iterdir()] == ["config.yaml"]


def test_a_search_is_left_alone_by_a_run_of_its_folders_name(opened: Opened, tmp_path: Path) -> None:
    opened()
    with pytest.raises(HimalayaError, match="lora_search is no run's folder"):
        RunStore(tmp_path / "lora_search", {"run_id": "lora_search"}, overwrite=True)
