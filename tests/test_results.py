"""What the documentation says was measured is what the committed results say."""

import importlib.util
import json
import re
import statistics
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from tiny_runs import write_run

from himalaya_adapter.experiments import compose_run
from himalaya_adapter.storage import read_json
from himalaya_adapter.streams.catalogue import read_definition

ROOT = Path(__file__).parents[1]
GENERATOR = ROOT / "docs" / "generate_results.py"
RUNNER = ROOT / "benchmarks" / "run_missing.py"
STREAMS = sorted((ROOT / "benchmarks" / "streams").glob("*.yaml"))
SCORES = (
    *("retained_accuracy_auc", "average_accuracy", "learning_accuracy", "forgetting", "frozen_accuracy"),
    *("base_drift", "unlabelled_accuracy"),
)
CONFIGS = sorted((ROOT / "benchmarks" / "results").glob("*/*/config.yaml"))


@cache
def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "section",
    [
        *("headline", "package25", "paired", "expected", "positions", "six-tasks"),
        *("hundred", "unknown", "many-tasks", "room", "bits", "source-atoms", "three-kinds"),
        pytest.param("llama-2-7b", marks=pytest.mark.slow),
    ],
)
def test_the_tables_are_generated_from_the_committed_runs(section: str) -> None:
    module = script(GENERATOR)
    assert module.written(section) == module.generated(section), "run: python docs/generate_results.py"


@pytest.mark.parametrize("picture", ["retained_accuracy", "learning_by_position"])
def test_the_pictures_show_the_committed_runs(picture: str) -> None:
    module = script(GENERATOR)
    with Image.open(ROOT / "docs" / "images" / f"{picture}.png") as image:
        assert image.info["Description"] == module.shown(picture), "run: python docs/generate_results.py"


def test_bits_are_compared_on_the_tasks_that_all_have(tmp_path: Path) -> None:
    module = script(GENERATOR).bits_results
    scores = {("loreft", 16): [1.0, 1.0, 0.0, 1.0], ("loreft", 3): [1.0, 0.0, 0.0, 1.0]}
    lines = [
        {"task": task, "method": method, "bits": bits, "bytes": 1000 * bits, "score": sum(items) / 4}
        | {"item_scores": items}
        for (method, bits), items in scores.items()
        for task in ("interface_german", "patient_record", "pinyin")[: 3 if bits == 16 else 2]
    ]
    path = tmp_path / "bits.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in module.table(path).splitlines()[2:4]]
    assert [row[1:5] for row in rows] == [["16", "400 kB", "2", "0.750"], ["3", "75.00 kB", "2", "0.500"]]
    assert rows[1][5].startswith("−0.250 [")
    assert module.table(tmp_path / "nothing").startswith("Not measured yet")


def test_the_picture_of_bits_shows_the_committed_lines() -> None:
    module = script(GENERATOR).bits_results
    assert module.PICTURE.is_file() == bool(module.points())
    if module.points():
        with Image.open(module.PICTURE) as image:
            assert image.info["Description"] == module.shown(), "run: python docs/generate_results.py"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.parent.relative_to(path.parents[2])))
def test_one_command_repeats_each_row(config: Path) -> None:
    assert compose_run([f"run={config}"]).run.run_id == config.parent.name


def test_what_needs_no_learning_scores_what_the_page_says() -> None:
    """The better of the commonest answer and the copied prompt, as the page of streams has them."""
    tasks = read_json(ROOT / "benchmarks" / "results" / "streams.json")["package_stream_25"].values()
    floors = [max(task["constant"], task["copy"] or 0) for task in tasks]
    assert len(floors) == 25
    results = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert f"scores {statistics.mean(floors):.2f} on average" in results
    above = []
    for name in ("himalaya-24atoms", "loreft-independent", "loreft", "lilac", "lora-ewc", "lora"):
        matrix = read_json(ROOT / "benchmarks" / "results" / "package25" / f"{name}-package25" / "matrix.json")
        above.append(sum(cell["score"] > floor for cell, floor in zip(matrix["rows"][-1], floors, strict=True)))
    assert (
        "HIMALAYA is above that on {} of the 25 tasks, one LoReFT a task on {}, LoReFT + EWC on {}, LILAC on {}, "
        "LoRA + EWC on {}, LoRA on {}"
    ).format(*above) in results


def test_the_prose_says_what_was_measured() -> None:
    """Of README and the first screen of the results: the runs over 25 tasks with both seeds."""
    results = ROOT / "benchmarks" / "results" / "package25"
    names = ("himalaya-24atoms", "himalaya-channels", "himalaya-anchored", "loreft-independent")
    own, twelve, alike, alone = (
        [read_json(results / f"{name}-package25{seed}" / "metrics.json") for seed in ("", "-seed1")] for name in names
    )
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())

    def both(key: str, runs: list[dict[str, Any]]) -> str:
        return " and ".join(f"{run[key]:.3f}" for run in runs)

    area, learnt = "retained_accuracy_auc", "learning_accuracy"
    assert (
        f"**One LoReFT's area ({both(area, alone)}) with a fifth of its parameters**: 12 atoms reach "
        f"{both(area, twelve)}, 24 {both(area, own)} with two fifths. With channels alike 12 atoms had "
        f"{both(area, alike)}" in page
    )
    assert f"{both(learnt, own)} against {both(learnt, alone)}, in two fifths of its parameters" in page
    assert f"With 12 atoms it is {both(learnt, twelve)}, in a fifth" in page
    assert all(run["forgetting"] == 0 for run in (*own, *twelve))
    again = read_json(results.parent / "scored_again.json")
    assert (again["run"], again["changed"]) == (own[1]["run_id"], 0)
    assert f"All {again['items']:,} test items, scored again at the end" in page
    recognised, unnamed = own[1]["tasks_recognised"], own[1]["unlabelled_accuracy"]
    assert f"{100 * recognised:.1f} % of the prompts (seed 1; without its name a task scores {unnamed:.3f})" in page
    assert [alone[0]["trainable_parameters"] / run[0]["trainable_parameters"] for run in (own, twelve)] == (
        pytest.approx([2.5, 5], rel=0.01)
    )
    drifts = [f"+{100 * run['base_drift']:.0f} %" for runs in (own, twelve, alike) for run in runs]
    assert "perplexity {} and {} (12 atoms {} and {}, with channels alike {} and {})".format(*drifts) in page
    sizes = [f"{own[1][key] / 1e3:.0f} kB" for key in ("stored_bytes", "released_bytes")]
    assert f"The file has {sizes[0]}, the release {sizes[1]}" in page
    a_task = f"{alone[0]['stored_bytes'] / 25e3:.0f} kB a task in 32 bits"
    assert a_task in page
    assert a_task in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_the_hundred_tasks_say_what_the_page_says() -> None:
    run = read_json(ROOT / "benchmarks" / "results" / "hundred" / "himalaya-seed0" / "metrics.json")
    assert (len(run["tasks"]), run["forgetting"]) == (100, 0)
    learnt, frozen = run["learning_accuracy"], run["frozen_accuracy"]
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert f"{learnt:.3f} on average, against {frozen:.3f} of the frozen model" in page
    assert f"The file has {run['stored_bytes'] / 1e3:.0f} kB from the first task to the last" in page
    assert f"Without the name a task scores {run['unlabelled_accuracy']:.3f}" in page
    quarters = [
        statistics.mean(task["after_learning"]["score"] for task in part)
        for part in (run["tasks"][:25], run["tasks"][75:])
    ]
    assert f"[it is higher by {quarters[1] - quarters[0]:.3f}](#a-hundred-tasks)" in page


def test_the_search_for_the_strength_of_ewc_found_what_the_page_says() -> None:
    search = read_json(ROOT / "benchmarks" / "results" / "ewc_strength.json")
    areas = {trial["parameters"]["ewc_lambda"]: trial["value"] for trial in search["trials"]}
    assert max(areas, key=lambda one: areas[one]) == 0.4
    told = [f"{areas[one]:.3f}" for one in sorted(areas)]
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"areas of {', '.join(told[:-1])} and {told[-1]} on `validation_stream`" in page


def test_the_six_tasks_say_what_the_page_says() -> None:
    found = {
        path.parent.name: read_json(path)
        for path in (ROOT / "benchmarks" / "results" / "rivals").glob("*/metrics.json")
    }
    own, area = found.pop("himalaya-24atoms"), "retained_accuracy_auc"
    assert all(own[area] > other[area] for other in found.values())
    assert all(own[key] > found["lora-joint"][key] for key in ("learning_accuracy", "average_accuracy"))
    assert abs(found["lora-replay"]["forgetting"] - found["lora"]["forgetting"]) < 0.02


def test_the_placements_over_the_stream_are_compared_as_measured() -> None:
    results = ROOT / "benchmarks" / "results"
    weights = read_json(results / "single_task" / "weights_over_stream.json")["tasks"]
    stream = read_json(results / "package25" / "himalaya-anchored-package25" / "item_scores.json")["rows"]
    differences = [
        statistics.mean(task["item_scores"]) - statistics.mean(stream[row][row]) for row, task in enumerate(weights)
    ]
    mean = f"{statistics.mean(differences):.3f}".replace("-", "−")
    told = f"first {len(weights)} tasks of `package_stream_25` they score {mean}"
    assert told in (ROOT / "docs" / "trials.md").read_text(encoding="utf-8")


def test_whole_sizes_on_gemma_are_compared_as_measured() -> None:
    results = ROOT / "benchmarks" / "results"
    tasks = read_json(results / "single_task" / "whole_sizes_on_gemma.json")["tasks"]
    roots = read_json(results / "gemma10" / "himalaya-24atoms" / "metrics.json")["learning_accuracy"]
    whole = statistics.mean(task["score"] for task in tasks)
    told = f"{len(tasks)} tasks are learnt to {whole:.3f}, with roots to {roots:.3f}".replace("10 tasks", "ten tasks")
    assert told in (ROOT / "docs" / "trials.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/tried.md"])
def test_every_score_in_the_prose_is_that_of_a_committed_run(page: str) -> None:
    """Of a run, of a method over its seeds, of a trial, or of a generated table."""
    text = (ROOT / page).read_text(encoding="utf-8")
    tables = re.findall(r"<!-- generated.*?<!-- end -->", text, flags=re.S)
    known = {number for table in tables for number in re.findall(r"\b0\.\d{3}\b", table)}
    seeds: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/*/metrics.json")):
        seeds.setdefault(str(path.parent).rsplit("-seed", 1)[0], []).append(read_json(path))
    for runs in seeds.values():
        for key in SCORES:
            values = [run[key] for run in runs if run.get(key) is not None]
            known |= {f"{abs(value):.3f}" for value in (*values, statistics.mean(values or [0.0]))}
    search = read_json(ROOT / "benchmarks" / "results" / "ewc_strength.json")
    known |= {f"{trial['value']:.3f}" for trial in search["trials"]}
    prose = re.sub(r"<!-- generated.*?<!-- end -->", "", text, flags=re.S)
    assert not [number for number in re.findall(r"\b0\.\d{3}\b", prose) if number not in known]


def test_the_shorter_streams_are_parts_of_the_longer_one() -> None:
    whole = [task.name for task in read_definition("package_stream_25").tasks]
    found = {path.stem: [task.name for task in read_definition(str(path)).tasks] for path in STREAMS}
    assert not set(found.pop("related_tasks")) & set(whole)
    assert set(found.pop("three_kinds")) < set(whole)
    assert found.pop("package_stream_100") == [f"{name}_{part}" for part in range(1, 5) for name in whole]
    assert found == {
        "package_stream_first_10": whole[:10],
        "package_stream_first_15": whole[:15],
        "package_stream_last_15": whole[:9:-1],
    }


def test_experiments_without_results_are_run(place: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    experiment = tmp_path / "results" / "tiny" / "lora"
    experiment.mkdir(parents=True)
    written = write_run(place, place / "backbone", place / "stream.yaml", "LORA", max_updates_per_task=2)
    (experiment / "config.yaml").write_bytes(written.read_bytes())
    words = ["run_missing", "--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", words)
    runner = script(RUNNER)
    runner.main()
    assert capsys.readouterr().out.strip() == str(experiment)
    assert len(read_json(experiment / "matrix.json")["rows"]) == 3
    assert read_json(experiment / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(
        place / "backbone"
    )
    assert not list(experiment.rglob("*.safetensors")), "weights are not committed"
    runner.main()
    assert capsys.readouterr().out == "", "what has results is left alone"
    monkeypatch.setattr(sys, "argv", [*words, "tiny/none"])
    with pytest.raises(SystemExit, match="unknown experiment 'tiny/none'"):
        runner.main()


def test_the_table_of_speeds_is_generated_from_the_committed_measurements() -> None:
    module = script(ROOT / "docs" / "generate_speed.py")
    assert module.written() == module.generated(), "run: python docs/generate_speed.py"


@pytest.mark.parametrize("table", ["methods", "variants", "warm-starts"])
def test_the_tables_of_single_tasks_are_generated_from_the_committed_trials(table: str) -> None:
    module = script(ROOT / "docs" / "generate_trials.py")
    page = module.PAGE.read_text(encoding="utf-8")
    assert page.split(module.START.format(table))[1].split(module.END)[0] == module.TABLES[table]()


def test_the_picture_of_single_tasks_shows_the_committed_trials() -> None:
    module = script(ROOT / "docs" / "generate_trials.py")
    with Image.open(module.PICTURE) as image:
        assert image.info["Description"] == module.shown(), "run: python docs/generate_trials.py"


def test_the_page_of_all_tables_has_every_committed_experiment() -> None:
    module = script(GENERATOR)
    folders = {path.parent.parent.name for path in (ROOT / "benchmarks" / "results").glob("*/*/metrics.json")}
    assert folders == set(module.TITLES) == set(module.SECTIONS)


def test_the_first_task_took_as_long_as_the_readme_says() -> None:
    measured = read_json(ROOT / "benchmarks" / "results" / "first_task.json")
    minutes = {name: step["processor"] / 60 for name, step in measured["steps"].items()}
    clock = sum(step["seconds"] for step in measured["steps"].values()) / 60
    told = f"{sum(minutes.values()):.0f} minutes of processor time** ({minutes['install']:.0f} of them for the"
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert told in readme
    assert f"{clock:.0f} minutes on the clock" in readme


def test_what_evaluation_saves_is_what_was_measured() -> None:
    tasks = read_json(ROOT / "benchmarks" / "results" / "evaluation.json")["tasks"]
    medians = [statistics.median(task["ratios"]) for task in tasks]
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert f"{min(medians):.1f} to {max(medians):.1f} times as fast" in page
