"""What is told of a run while it learns: lines or a bar, and TensorBoard's scalars, read back."""

import io
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import TASKS, run_words

from himalaya_adapter.experiments import compose_run
from himalaya_adapter.storage import read_json
from himalaya_adapter.training import progress
from himalaya_adapter.training.progress import StreamProgress
from himalaya_adapter.training.stream_runner import run_stream


class Stopped(Exception):
    """In the middle of the stream."""


def stop_after_two(rows: list[Any]) -> None:
    if len(rows) == 2:
        raise Stopped


def test_trackers_get_one_curve_of_the_loss_and_scores_against_the_tasks_learnt(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is stopped once: what an earlier process has told is told again, at the same places."""
    words = run_words(place, "LORA")
    config = compose_run([*words[1:], "training.report_to=tensorboard"]).run
    caplog.set_level(logging.INFO, "himalaya_adapter")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(Stopped):
            run_stream(config, tmp_path, after_task=stop_after_two)
        folder = run_stream(config, tmp_path)
    assert [str(one.message) for one in warned if issubclass(one.category, FutureWarning)] == []
    assert "Loading weights" not in capsys.readouterr().err

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    losses = events.Scalars("train/loss")
    steps = [read_json(folder / "checkpoints" / f"record_{index}.json")["steps"] for index in range(3)]
    assert [one.step for one in losses] == list(range(1, sum(steps) + 1))
    metrics, matrix = read_json(folder / "metrics.json"), read_json(folder / "matrix.json")
    found = {tag: {one.step: one.value for one in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    for column, task in enumerate(TASKS):
        wanted = {row + 1: matrix["rows"][row][column]["score"] for row in range(column, 3)}
        assert found[f"eval/score/{task}"] == pytest.approx(wanted)
    retained = {point["after"]: point["mean"] for point in metrics["retained_accuracy"]}
    assert found["eval/retained_accuracy"] == pytest.approx(retained)
    for name in ("retained_accuracy_auc", "forgetting", "stored_bytes"):
        assert found[f"eval/{name}"].keys() == {1, 2, 3}
        assert found[f"eval/{name}"][3] == pytest.approx(metrics[name])

    said = [record.getMessage() for record in caplog.records if record.name == progress.logger.name]
    assert said[0] == "task 1 of 3, parity: learning 24 items"
    assert said[1].startswith(f"task 1 of 3, parity: score {matrix['rows'][0][0]['score']:.3f}")
    assert said[1].endswith(" left")
    assert f"task 2 of 3, colour_word: score {matrix['rows'][1][1]['score']:.3f}, mean of 2 tasks" in said[3]


def told(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False) -> list[str]:
    """What is told of two tasks of 100 steps each, the second one learnt by this process."""
    stream, lines = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress.logger, "info", lines.append)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    if terminal:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")  # as rich asks for it
    shown = StreamProgress(["one", "two", "three"], [100, 300, 100], shown=True)
    with shown.bar:
        shown.begin(1)
        for step in range(1, 101):
            shown.step(1, step, 100, 0.5)
        shown.scored(1, [None, 0.75])
    return lines + stream.getvalue().splitlines()


def test_without_a_terminal_there_are_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch)
    assert lines[0] == "task 2 of 3, two: learning 300 items"
    steps = [line for line in lines if "step" in line]
    assert steps[-1].startswith("task 2 of 3, two: step 100 of 100, loss 0.500, ")
    assert all(line.endswith(" left") for line in (steps[-1], lines[-1]))
    assert lines[-1].startswith("task 2 of 3, two: score 0.750")


def test_in_a_terminal_there_is_one_bar_and_a_line_for_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(told(monkeypatch, terminal=True))
    assert "task 2 of 3, two: score 0.750" in text
    assert " %" in text
    assert " left" in text


def test_a_search_hushes_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.logger, "level", logging.ERROR)
    assert told(monkeypatch, terminal=True) == []
