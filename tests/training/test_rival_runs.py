"""LILAC, COLTAS and GloDiS-64 through a stream: they learn, keep their size, are released or not, and are resumed."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import in_own_process, results, run_words

from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.methods.coltas import ColtasConfig, task_components
from himalaya_adapter.storage import read_json
from himalaya_adapter.training.stream_runner import run_stream

RIVALS = ("LILAC", "COLTAS", "GLODIS")
WEIGHTS = "adapter_model.safetensors"
KILLED = -9


@pytest.fixture(scope="module", params=RIVALS)
def words(request: pytest.FixtureRequest, place: Path) -> list[str]:
    return run_words(place, request.param, weight_decay=0.1, save_steps=2)


@pytest.fixture(scope="module")
def run(words: list[str], place: Path) -> Path:
    """The folder of a finished run of each rival."""
    return run_stream(compose_run(words[1:]).run, place / "out")


def test_a_rival_learns_and_keeps_its_size(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["task_end"] * 3
    assert all(line["loss_last"] < line["loss_first"] for line in lines)
    assert {line["stored_bytes"] for line in lines} == {(run / "adapter" / WEIGHTS).stat().st_size}
    found = read_json(run / "metrics.json")
    assert found["trainable_parameters"] > 0
    assert all("unlabelled" not in task for task in found["tasks"]), "nothing of it can tell tasks from prompts"


def test_lilac_alone_has_a_release_file_and_is_scored_with_it(run: Path) -> None:
    found = read_json(run / "metrics.json")
    if found["method"] != "lilac":
        assert found["released_bytes"] is None
        assert not (run / "release").exists()
        return
    assert found["released_bytes"] == (run / "release" / WEIGHTS).stat().st_size < found["stored_bytes"] / 2
    assert [task["released"]["n"] for task in found["tasks"]] == [8, 8, 8]
    model = load_adapter(run / "release", task="echo").model
    assert model.peft_config["default"].released


@pytest.mark.parametrize("words", ["COLTAS"], indirect=True)
def test_what_no_task_of_the_stream_uses_is_as_it_was_at_the_start(run: Path) -> None:
    """With weight decay, through the real trainer."""
    config = ColtasConfig(components=16, mask_atoms=8, atoms_per_task=2)
    used = set().union(*(task_components(name, config).tolist() for name in ("parity", "colour_word", "echo")))
    unused = sorted(set(range(16)) - used)
    assert unused
    tensors = load_file(run / "adapter" / WEIGHTS)
    outward = [tensor for name, tensor in tensors.items() if name.endswith("coltas_B")]
    assert len(outward) == 8
    assert all((tensor[:, unused] == 0).all() for tensor in outward)
    assert all((tensor[:, sorted(used)] != 0).any(0).all() for tensor in outward)


@pytest.mark.parametrize(
    "words",
    ["LILAC", *(pytest.param(method, marks=pytest.mark.slow) for method in ("COLTAS", "GLODIS"))],
    indirect=True,
)
def test_a_killed_run_goes_on_bit_for_bit(words: list[str], run: Path, tmp_path: Path) -> None:
    assert in_own_process([*words, f"results_dir={tmp_path}"], write="task_1/checkpoint-4") == KILLED
    run_stream(compose_run(words[1:]).run, tmp_path)
    records = [read_json(tmp_path / run.name / "checkpoints" / f"record_{index}.json") for index in range(3)]
    assert [record["resumed"] for record in records] == [False, True, False]
    assert results(tmp_path / run.name) == results(run)


@pytest.mark.parametrize("words", ["LILAC"], indirect=True)
def test_a_damaged_release_of_a_run_is_one_line(run: Path, place: Path) -> None:
    damaged = place / "damaged"
    shutil.copytree(run, damaged)
    content = (damaged / "release" / WEIGHTS).read_bytes()
    (damaged / "release" / WEIGHTS).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"the adapter in .*/damaged/release could not be loaded: "):
        load_adapter(damaged / "release", task="echo")
