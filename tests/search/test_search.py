"""A search that is killed, or that several processes share, loses no trial, repeats none, and finds the same."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock
from optuna.trial import TrialState
from tiny_runs import in_own_process

from himalaya_adapter.cli import main
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.search import run_search
from himalaya_adapter.storage import read_json
from himalaya_adapter.streams.splits import split_of
from himalaya_adapter.training.stream_runner import run_stream

KILLED = -9
TRIALS = 4  # as in conftest.py


def search(words: list[str], results_dir: Path, *more: str, overwrite: bool = False) -> dict[str, Any]:
    """Search in this process; returns what ``trials.json`` says."""
    launch = compose_run([*words[1:], *more])
    return dict(read_json(run_search(launch.run, results_dir, overwrite=overwrite) / "trials.json"))


def outcomes(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials without their times."""
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in found["trials"]]


def open_study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="lora", storage=f"sqlite:///{folder / 'study.db'}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.fixture
def uninterrupted(folder: Path, words: list[str]) -> Path:
    """A search in one process that was never killed."""
    if not (folder / "lora_search" / "trials.json").is_file():
        assert main([*words, f"results_dir={folder}"]) == 0
    return folder / "lora_search"


def test_every_trial_is_run_once_and_the_best_is_kept(uninterrupted: Path, words: list[str]) -> None:
    found = read_json(uninterrupted / "trials.json")
    assert [trial["number"] for trial in found["trials"]] == list(range(TRIALS))
    assert {trial["state"] for trial in found["trials"]} <= {"complete", "pruned"}
    assert len({trial["parameters"]["learning_rate"] for trial in found["trials"]}) == TRIALS
    for trial in found["trials"]:
        metrics = read_json(uninterrupted / "trials" / str(trial["number"]) / "metrics.json")
        assert metrics["split"] == "validation"
        assert metrics["learning_rate"] == trial["parameters"]["learning_rate"]
        assert metrics["retained_accuracy_auc"] == trial["value"] == trial["after_task"]["2"]
    values = [trial["value"] for trial in found["trials"]]
    assert found["best"] == values.index(max(values))
    best = compose_run([f"run={uninterrupted / 'best.yaml'}"]).run
    wanted = compose_run([*words[1:3], "dataset.max_samples_per_task=12", "dataset.num_tasks=25"]).run
    wanted.training.learning_rate = found["trials"][found["best"]]["parameters"]["learning_rate"]
    wanted.run_id, wanted.optuna.stream = "lora-best", "validation_stream"
    assert best == wanted


def test_the_best_run_runs(uninterrupted: Path, tmp_path: Path) -> None:
    launch = compose_run([f"run={uninterrupted / 'best.yaml'}", "dataset.num_tasks=2"])
    metrics = read_json(run_stream(launch.run, tmp_path) / "metrics.json")
    assert (metrics["run_id"], metrics["split"], metrics["stream"]) == ("lora-best", "test", "tiny")


def test_the_report_shows_the_search(uninterrupted: Path) -> None:
    page = (uninterrupted / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert "Too few trials have finished" in page
    assert "training.learning_rate" in page
    assert page.count('<th scope="row"') == TRIALS
    assert page.count("<figure data-topic") == 2


def test_a_finished_search_runs_nothing(
    uninterrupted: Path, words: list[str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    before = {path: path.stat().st_mtime_ns for path in (uninterrupted / "trials").rglob("*")}
    study = (uninterrupted / "study.db").read_bytes()
    assert main([*words, f"results_dir={uninterrupted.parent}"]) == 0
    assert f"is finished: {TRIALS} trials" in caplog.text
    assert capsys.readouterr().out.strip() == str(uninterrupted / "report.html")
    assert {path: path.stat().st_mtime_ns for path in (uninterrupted / "trials").rglob("*")} == before
    assert (uninterrupted / "study.db").read_bytes() == study


@pytest.mark.slow
def test_killed_again_and_again_it_goes_on_and_finds_the_same(
    uninterrupted: Path, words: list[str], tmp_path: Path
) -> None:
    words = [*words, f"results_dir={tmp_path}"]
    folder = tmp_path / "lora_search"
    # In the middle of a trial's second task; between a run's end and its trial's; when that is written down.
    assert in_own_process(words, write="trials/1/checkpoints/task_1/checkpoint-2") == KILLED
    (left,) = [trial for trial in open_study(folder).trials if trial.state == TrialState.RUNNING]
    assert (left.number, list(left.intermediate_values)) == (1, [1])
    learned = (folder / "trials" / "1" / "checkpoints" / "record_0.json").stat().st_mtime_ns
    assert in_own_process(words, write="trials/.2.lock") == KILLED
    assert (folder / "trials" / "1" / "checkpoints" / "record_0.json").stat().st_mtime_ns == learned
    assert read_json(folder / "trials" / "1" / "checkpoints" / "record_1.json")["resumed"]
    assert (folder / "trials" / "2" / "metrics.json").is_file()
    adopted = open_study(folder).trials[1]
    assert (adopted.params, adopted.state) == (left.params, TrialState.COMPLETE)
    assert in_own_process(words) == 0
    found = read_json(folder / "trials.json")
    assert outcomes(found) == outcomes(read_json(uninterrupted / "trials.json"))
    assert (folder / "best.yaml").read_text() == (uninterrupted / "best.yaml").read_text()


def test_two_processes_share_the_trials(words: list[str], tmp_path: Path) -> None:
    words = [*words, f"results_dir={tmp_path}"]
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(in_own_process(words))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0, 0]
    found = read_json(tmp_path / "lora_search" / "trials.json")
    assert [trial["number"] for trial in found["trials"]] == list(range(TRIALS))
    assert {trial["state"] for trial in found["trials"]} <= {"complete", "pruned"}
    spans = [(trial.datetime_start, trial.datetime_complete) for trial in open_study(tmp_path / "lora_search").trials]
    assert any(one[0] < other[0] < one[1] for one in spans for other in spans), "two at a time"
    learned = (tmp_path / "lora_search" / "trials").glob("*/checkpoints/record_*.json")
    assert not any(read_json(path)["resumed"] for path in learned), "none was taken from the other process"


def test_test_items_change_nothing(uninterrupted: Path, words: list[str], place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "stream.yaml", tmp_path)
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in (row for row in rows if split_of(row["id"]) == "test"):
        row |= {"sentence": "nothing", "colour": "nowhere", "parity": "no", "number": f"{row['number']}9"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = search(words, tmp_path, f"optuna.stream={tmp_path / 'stream.yaml'}", "optuna.n_trials=2")
    assert outcomes(found) == outcomes(read_json(uninterrupted / "trials.json"))[:2]
    hashes = [
        read_json(folder / "trials" / "0" / "environment.json")["data_hashes"]
        for folder in (uninterrupted, tmp_path / "lora_search")
    ]
    for task in hashes[0]:
        assert [split for split in hashes[0][task] if hashes[0][task][split] != hashes[1][task][split]] == ["test"]


def test_a_trial_below_the_median_is_stopped(words: list[str], tmp_path: Path) -> None:
    search(words, tmp_path, "optuna.n_trials=1")
    study = open_study(tmp_path / "lora_search")
    distributions = study.trials[0].distributions
    for number in range(5):  # trials that no real one can reach
        study.add_trial(
            optuna.create_trial(
                params={"learning_rate": 0.5 + number / 100},
                distributions=distributions,
                value=1.0 + number,
                intermediate_values=dict.fromkeys((1, 2), 1.0 + number),
            )
        )
    found = search(words, tmp_path, "optuna.n_trials=7")
    last = found["trials"][6]
    assert (last["state"], last["value"], list(last["after_task"])) == ("pruned", None, ["1"])
    learned = {path.name for path in (tmp_path / "lora_search" / "trials" / "6" / "checkpoints").glob("record_*")}
    assert learned == {"record_0.json"}


def test_what_fails_is_named_and_what_repeats_is_not_run(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Four trials of two values, one of which fits no model; the study is in a database."""
    caplog.set_level("INFO")
    words = [word for word in words if "search_space" not in word]
    choice = "optuna.search_space.target_modules={type: categorical, choices: [[q_proj], [nowhere]]}"
    database = f"optuna.storage=sqlite:///{tmp_path / 'study.db'}"
    found = search(words, tmp_path, choice, database, "optuna.n_trials=4")
    (run,) = [trial for trial in found["trials"] if trial["state"] == "complete" and trial["same_as"] is None]
    (failed,) = [trial for trial in found["trials"] if trial["state"] == "fail" and trial["same_as"] is None]
    assert run["parameters"] == {"target_modules": ["q_proj"]}
    assert failed["parameters"] == {"target_modules": ["nowhere"]}
    assert "does not fit LlamaForCausalLM" in failed["reason"]
    assert f"fail: {failed['reason']}" in caplog.text
    for trial in found["trials"]:
        like = run if trial["parameters"] == run["parameters"] else failed
        assert trial["same_as"] == (None if trial is like else like["number"])
        assert (trial["value"], trial["reason"]) == (like["value"], like["reason"])
    folders = {path.name for path in (tmp_path / "lora_search" / "trials").iterdir() if path.name[0] != "."}
    assert folders == {str(run["number"])}
    assert found["best"] == run["number"]
    assert not (tmp_path / "lora_search" / "study.db").exists()
    again = search(words, tmp_path, choice, database, "optuna.n_trials=5")
    assert outcomes(again)[:4] == outcomes(found)


def test_trials_that_all_fail_are_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = "optuna.search_space.target_modules={type: categorical, choices: [[nowhere], [elsewhere]]}"
    assert main([*words, choice, "optuna.n_trials=2", f"results_dir={tmp_path}"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"himalaya: all 2 trials of {tmp_path / 'lora_search'} failed, the last one: LORA does")


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["optuna.search_space.learning_rate={type: uniform, low: 2, high: 1}"],
            "`low <= high` must hold",
        ),
        (["optuna.search_space.learning_rate={type: gauss}"], 'found "gauss", expected one of uniform'),
        (["optuna.search_space.lerning={type: uniform, low: 1, high: 2}"], "unknown key in optuna.search_space"),
        (["optuna.search_space.name={type: categorical, choices: [a]}"], "optuna.search_space.name may mean"),
        (["optuna.n_trials=null"], "run 'lora' has no optuna.n_trials; for example optuna.n_trials=20"),
        (["optuna.stream=validation_strem"], "unknown stream 'validation_strem'; did you mean 'validation_stream'?"),
        (["model.backbone.name=smollm3"], "unknown backbone 'smollm3'; did you mean"),
        (["model.adapter.type=LORE"], "unknown method 'lore'"),
        (
            ["optuna.search_space.model_adapter_options_r={type: uniform, low: 2, high: 8}"],
            "option r of method LORA is 2.0; expected a whole number",
        ),
        (["evaluation.split=train"], 'found "train", expected one of test, validation'),
        (["optuna.storage=study.db"], "optuna.storage=study.db cannot be opened"),
        (
            ["optuna.storage=sqlite:////nowhere/study.db"],
            "optuna.storage=sqlite:////nowhere/study.db cannot be opened",
        ),
        (["optuna.storage=none://me:secret@host/db"], "optuna.storage=none://me:…@host/db cannot be opened"),
    ],
)
def test_a_mistake_is_one_line_and_begins_nothing(
    changes: list[str], message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *changes, f"results_dir={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "secret" not in line
    assert not (tmp_path / "out" / "lora_search").exists()


def test_a_study_of_another_config_is_left_alone(uninterrupted: Path, words: list[str]) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}
    for change, message in (
        ("training.task_epochs=2", "training.task_epochs=1, this search has 2"),
        (
            "optuna.search_space.learning_rate.high=2",
            "optuna.search_space.learning_rate.high=1.0, this search has 2.0",
        ),
        ("optuna.direction=minimize", "optuna.direction='maximize', this search has 'minimize'"),
    ):
        with pytest.raises(HimalayaError, match=r"the study of .*lora_search was begun with") as caught:
            search(words, uninterrupted.parent, change)
        assert message in str(caught.value)
    assert {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()} == before


def test_a_damaged_study_is_one_line_and_overwrite_starts_anew(
    uninterrupted: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lora_search"
    shutil.copytree(uninterrupted, folder)
    (folder / "study.db").write_bytes((folder / "study.db").read_bytes()[7:])
    assert main([*words, f"results_dir={tmp_path}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "study.db" in line]
    assert "study.db cannot be opened (" in line
    assert len(list((folder / "trials").iterdir())) >= TRIALS
    found = search(words, tmp_path, "optuna.n_trials=1", overwrite=True)
    assert len(found["trials"]) == 1
    assert {path.name for path in (folder / "trials").iterdir() if path.name[0] != "."} == {"0"}


def test_overwrite_does_not_take_a_trial_from_another_process(uninterrupted: Path, words: list[str]) -> None:
    locks = uninterrupted.with_name(".lora_search.locks")
    with FileLock(locks / "trial_3.lock"), pytest.raises(HimalayaError, match="another process works on"):
        search(words, uninterrupted.parent, overwrite=True)
    assert (uninterrupted / "study.db").is_file()


def test_a_folder_of_something_else_is_left_alone(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "lora_search").mkdir()
    (tmp_path / "lora_search" / "notes.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(HimalayaError, match="is no search's folder"):
            search(words, tmp_path, overwrite=overwrite)
    assert [path.name for path in (tmp_path / "lora_search").iterdir()] == ["notes.txt"]


def test_torchrun_is_refused(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HimalayaError, match="start the same search several times instead of torchrun"):
        search(words, tmp_path)
