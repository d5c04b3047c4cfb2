"""What is written of a study with trials of every kind; the trials are made up, the study and the page are real."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from himalaya_adapter.experiments import compose_run
from himalaya_adapter.report import write_search_report
from himalaya_adapter.search.results import TRIALS_FOR_IMPORTANCE, write_results
from himalaya_adapter.search.study import SharedStudy
from himalaya_adapter.storage import read_json

SPACE = [
    "optuna.search_space.learning_rate={type: loguniform, low: 1e-5, high: 1}",
    "optuna.search_space.r={type: int, low: 1, high: 8}",
    "optuna.search_space.target_modules={type: categorical, choices: [[q_proj], [v_proj]]}",
]


def written(place: Path, complete: int, *words: str) -> dict[str, Any]:
    """Write the results of a study of ``complete`` finished trials, one stopped and one failed trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = compose_run(["run=demo-lora", "optuna.n_trials=50", *SPACE, *words]).run
    shared = SharedStudy(place / "lora_search", run)
    with shared.lock:
        shared.begin(overwrite=False)
        for number in range(complete + 2):
            values = {
                "learning_rate": 10.0 ** -(number % 5),
                "r": 1 + number % 8,
                "target_modules": ('["q_proj"]', '["v_proj"]')[number % 2],
            }
            score = 0.1 * (number % 5) + 0.001 * number
            result: dict[str, Any] = {"value": score, "intermediate_values": {1: score, 2: score}}
            state = TrialState.COMPLETE
            if number == complete:
                state, result = TrialState.PRUNED, {"value": 0.3, "intermediate_values": {1: 0.3}}
            elif number > complete:
                state, result = TrialState.FAIL, {"user_attrs": {"reason": "<loss> was not finite"}}
            trial = optuna.create_trial(params=values, distributions=shared.distributions, state=state, **result)
            shared.study.add_trial(trial)
        write_results(shared)
    return dict(read_json(shared.folder / "trials.json"))


def test_trials_of_every_kind(tmp_path: Path) -> None:
    found = written(tmp_path, 12)
    assert [trial["state"] for trial in found["trials"]] == [*["complete"] * 12, "pruned", "fail"]
    assert found["trials"][12]["value"] is None
    assert found["trials"][12]["after_task"] == {"1": 0.3}
    assert found["trials"][13]["reason"] == "<loss> was not finite"
    assert found["trials"][1]["parameters"] == {"learning_rate": 0.1, "r": 2, "target_modules": ["v_proj"]}
    assert found["search_space"]["r"] == {"key": "model.adapter.options.r", "type": "int", "low": 1.0, "high": 8.0}
    assert found["best"] == 9
    assert sum(found["importance"].values()) == pytest.approx(1)
    assert next(iter(found["importance"])) == "learning_rate", "which alone sets the score"
    best = compose_run([f"run={tmp_path / 'lora_search' / 'best.yaml'}"]).run
    assert (best.training.learning_rate, best.model.adapter.options["r"]) == (1e-4, 2)
    assert best.model.adapter.options["target_modules"] == ["v_proj"]
    folder = tmp_path / "lora_search"
    page = write_search_report(folder, figures=True).read_text(encoding="utf-8")
    assert page.count("<figure data-topic") == 3
    topics = {path.name for path in (folder / "figures").iterdir()}
    assert topics == {
        f"lora_search_{topic}.{suffix}"
        for topic in ("history", "parameters", "importance")
        for suffix in ("png", "pdf")
    }
    assert "&lt;loss&gt; was not finite" in page
    assert "14 of 50: 12 complete, 1 pruned, 1 fail" in page


def test_what_matters_is_not_said_of_too_few_trials(tmp_path: Path) -> None:
    assert written(tmp_path, TRIALS_FOR_IMPORTANCE - 1)["importance"] is None


def test_the_best_is_the_smallest_of_what_is_minimised(tmp_path: Path) -> None:
    found = written(tmp_path, 5, "evaluation.primary_metric=forgetting")
    assert (found["direction"], found["best"]) == ("minimize", 0)


def test_a_study_without_a_finished_trial_has_a_page_and_no_best(tmp_path: Path) -> None:
    assert written(tmp_path, 0)["best"] is None
    assert not (tmp_path / "lora_search" / "best.yaml").exists()
    page = write_search_report(tmp_path / "lora_search").read_text(encoding="utf-8")
    assert "Too few trials have finished" in page
