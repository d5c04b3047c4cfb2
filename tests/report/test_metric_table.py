"""Formats, intervals, and which run is marked best."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import CHANGED, changed_runs, metrics_of

from himalaya_adapter.report.formats import format_bytes, format_interval, format_seconds, format_value
from himalaya_adapter.report.method_groups import group_by_method
from himalaya_adapter.report.run_folder import read_comparable_runs
from himalaya_adapter.report.score_tables import interval_of_mean, metric_rows
from himalaya_adapter.report.table import Text
from himalaya_adapter.storage import read_json, write_json

MakeRun = Callable[..., Path]


def cells_of(folders: list[Path], key: str) -> list[Text]:
    runs = changed_runs(folders[0].parent, [folder.name for folder in folders])
    return next(cells for metric, cells in metric_rows(group_by_method(runs)).items() if metric.key == key)


@pytest.fixture
def pair(make_run: MakeRun) -> list[Path]:
    return [make_run("a", tasks=["x", "y"]), make_run("b", tasks=["x", "y"], method="lora", method_name="LoRA")]


def set_metrics(folder: Path, **values: float | None) -> None:
    write_json(folder / CHANGED, {**metrics_of(folder), **values})


def test_a_norm_is_held_against_the_bound_of_its_own_run(make_run: MakeRun) -> None:
    def exceeds(*norms: float) -> list[bool]:
        for folder, norm in zip(folders, norms, strict=True):
            set_metrics(folder, update_norm_max=norm)
        return [entry.warning for entry in cells_of(folders, "update_norm_max")]

    folders = [make_run("strict", tasks=["x", "y"], method="himalaya_strict")]  # names no bound: the letter's, 1
    folders += [make_run(f"wide-{seed}", tasks=["x", "y"], seed=seed) for seed in (0, 1)]
    for folder in folders[1:]:
        path = folder / "adapter" / "adapter_config.json"
        write_json(path, {**read_json(path), "norm_bound": 2.0})
    assert exceeds(1.0, 2.0, 1.5) == [False, False]
    assert exceeds(1.5, 1.5, 1.5) == [True, False]
    assert exceeds(1.0, 2.0, 2.01) == [False, True]  # one seed of two
    assert exceeds(2.01, 2.01, 2.0) == [True, True]


def test_values_are_printed_for_people() -> None:
    assert format_value(0.71349, "score") == "0.713"
    assert format_value(None, "score") == "–"
    assert format_value(0.0123, "signed") == "+0.012"
    assert format_value(-0.0123, "signed") == "−0.012"
    assert format_value(-0.0001, "signed") == "0.000"
    assert format_value(61824, "count") == "61,824"
    assert [format_value(value, "count") for value in (61824.33, 0.4, 12.0)] == ["61,824", "0.4", "12"]
    assert [format_bytes(size) for size in (0, 999, 1500, 612_480, 1_843_200, 2_345_678_901)] == [
        "0 B",
        "999 B",
        "1.50 kB",
        "612 kB",
        "1.84 MB",
        "2.35 GB",
    ]
    assert [format_bytes(size) for size in (999.6, 99_996, 999_999)] == ["1.00 kB", "100 kB", "1.00 MB"]
    assert [format_seconds(seconds) for seconds in (59.96, 3599.6, 3659)] == ["1 min 0 s", "1 h 0 min", "1 h 1 min"]
    assert [format_seconds(seconds) for seconds in (0.04, 59.94, 200, 4320)] == [
        "0.0 s",
        "59.9 s",
        "3 min 20 s",
        "1 h 12 min",
    ]
    assert format_interval((0.6, 0.75)) == "[0.600, 0.750]"


def test_interval_of_a_mean_shrinks_with_the_square_root_of_the_tasks() -> None:
    one = {"score": 0.5, "low": 0.4, "high": 0.55}
    low, high = interval_of_mean([one] * 4)
    assert low == pytest.approx(0.5 - 0.1 / 2)
    assert high == pytest.approx(0.5 + 0.05 / 2)
    low, high = interval_of_mean([one, {"score": 0.9, "low": 0.7, "high": 1.0}])
    assert low == pytest.approx(0.7 - math.sqrt(0.1**2 + 0.2**2) / 2)
    assert high == pytest.approx(0.7 + math.sqrt(0.05**2 + 0.1**2) / 2)


def test_best_is_marked_in_the_right_direction(pair: list[Path]) -> None:
    set_metrics(pair[0], forgetting=0.01, learning_accuracy=0.7, base_drift=-0.3)
    set_metrics(pair[1], forgetting=0.05, learning_accuracy=0.8, base_drift=0.1)
    best = {
        key: [entry.bold for entry in cells_of(pair, key)]
        for key in ("forgetting", "learning_accuracy", "base_drift", "frozen_accuracy")
    }
    assert best == {
        "forgetting": [True, False],
        "learning_accuracy": [False, True],
        "base_drift": [False, True],
        "frozen_accuracy": [False, False],
    }


def test_of_runs_that_measured_other_rows_none_is_best_in_what_depends_on_them(pair: list[Path]) -> None:
    set_metrics(pair[0], forgetting=0.1, average_accuracy=0.6, measured_rows=[0, 1])
    set_metrics(pair[1], forgetting=0.2, average_accuracy=0.5, measured_rows=[1])
    assert not any(entry.bold for entry in cells_of(pair, "forgetting"))
    assert [entry.bold for entry in cells_of(pair, "average_accuracy")] == [True, False]
    set_metrics(pair[1], measured_rows=[0, 1])
    assert [entry.bold for entry in cells_of(pair, "forgetting")] == [True, False]


def test_a_bound_is_never_best(pair: list[Path], make_run: MakeRun) -> None:
    """A frozen model forgets nothing and needs no bytes, which is no merit."""
    frozen = make_run("c", tasks=["x", "y"], method="lora", method_name="Frozen", protocol="frozen")
    set_metrics(frozen, forgetting=0.0, learning_accuracy=0.9)
    set_metrics(pair[0], forgetting=0.01, learning_accuracy=0.7)
    set_metrics(pair[1], forgetting=0.05, learning_accuracy=0.8)
    best = [[entry.bold for entry in cells_of([*pair, frozen], key)] for key in ("forgetting", "learning_accuracy")]
    assert best == [[True, False, False], [False, True, False]]


def test_no_run_is_best_alone_or_in_a_tie(pair: list[Path]) -> None:
    assert not any(entry.bold for entry in cells_of(pair[:1], "learning_accuracy"))
    set_metrics(pair[0], learning_accuracy=0.5)
    set_metrics(pair[1], learning_accuracy=0.5)
    assert not any(entry.bold for entry in cells_of(pair, "learning_accuracy"))


def test_a_metric_that_one_run_lacks_is_a_dash_and_one_that_none_has_is_no_row(pair: list[Path]) -> None:
    assert [entry.text for entry in cells_of(pair, "atom_norm_max")] == ["1.000", "–"]
    runs = read_comparable_runs(pair[1].parent, [pair[1].name])
    assert "atom_norm_max" not in [metric.key for metric in metric_rows(group_by_method(runs))]
