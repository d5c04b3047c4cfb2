"""Tasks come one at a time, each from a file of its own, and none changes another; no mistake changes the folder."""

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_runs import write_backbone
from transformers import AutoModelForCausalLM, TrainerState

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.run_config import TrainingConfig
from himalaya_adapter.identity import sealed
from himalaya_adapter.learning.adapter_store import AdapterStore, room
from himalaya_adapter.learning.learn import Learner, LearnOptions, Learnt, learn
from himalaya_adapter.streams import Task

TEMPLATES = "Is {number} even?\nAnswer:", "{parity}"
SHORT = {"steps": 4, "learning_rate": 0.03, "budget_mb": None}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def folder_hash(folder: Path) -> dict[str, str]:
    """Everything that is there, hidden files beside it included."""
    found = [*folder.rglob("*"), *folder.parent.glob(f".{folder.name}*")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found) if path.is_file()}


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_model: Callable[..., Any], tiny_tokenizer) -> Path:
    """A tiny backbone, and three files of three kinds."""
    place = tmp_path_factory.mktemp("files")
    write_backbone(place / "base", tiny_model, tiny_tokenizer)
    write_backbone(place / "other", tiny_model, tiny_tokenizer, seed=1)
    write_backbone(place / "wide", tiny_model, tiny_tokenizer, hidden_size=128)
    write(place / "parity.jsonl", [{"number": n, "parity": ("yes", "no")[n % 2]} for n in range(40)])
    write(place / "echo.jsonl", [{"prompt": f"Repeat {n}:", "completion": f"{n} {n}"} for n in range(24)])
    write(place / "order.jsonl", [{"instruction": f"Say {n}.", "input": "loud", "output": f"{n}!"} for n in range(24)])
    return place


def options(files: Path, **said: Any) -> LearnOptions:
    return replace(LearnOptions(steps=4, learning_rate=0.03), **said)


def learn_three(folder: Path, files: Path, **said: Any) -> list[Learnt]:
    parity = options(files, backbone=str(files / "base"), templates=TEMPLATES, budget_mb=0.2, **said)
    return [
        learn(folder, str(files / "parity.jsonl"), "parity", parity),
        learn(folder, str(files / "echo.jsonl"), "echo", options(files, **said)),
        learn(folder, str(files / "order.jsonl"), "order", options(files, **said)),
    ]


@pytest.fixture(scope="module")
def learnt(files: Path, tmp_path_factory) -> tuple[Path, list[Learnt]]:
    folder = tmp_path_factory.mktemp("learnt") / "mine"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = learn_three(folder, files, keep_check=True)
    assert [str(one.message) for one in warned if issubclass(one.category, FutureWarning)] == []
    return folder, found


def test_three_tasks_one_after_another(learnt) -> None:
    folder, (first, second, third) = learnt
    assert [one.task.metric for one in (first, second, third)] == ["accuracy", "chrf", "chrf"]
    assert first.record["steps"] == 4
    assert first.record["items"] == 40 - first.task.items
    assert [change.task for change in third.earlier] == ["parity", "echo"]
    for change in (*second.earlier, *third.earlier):
        assert change.after == change.before
    assert third.earlier[0].after == first.task.after  # on the very items that were kept
    assert first.room - third.room == 2
    assert third.bytes == (folder / "adapter_model.safetensors").stat().st_size <= 200_000
    assert not [*folder.parent.glob(".mine*")]


def test_the_folder_is_a_plain_adapter_of_peft(learnt, files: Path) -> None:
    folder, _ = learnt
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert model.tasks == ["parity", "echo", "order"]
    assert {path.name for path in folder.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "tasks.json", "kept")
    }


def test_the_adapter_itself_keeps_no_item(learnt) -> None:
    folder, _ = learnt
    for path in folder.iterdir():
        content = path.read_bytes() if path.is_file() else b""
        for text in (b"Is 7 even", b"Repeat 7", b"7 7", b"Say 7", b"7!"):
            assert text not in content, path.name


def test_the_store_reads_the_adapter_without_its_backbone(learnt) -> None:
    folder, (*_, third) = learnt
    store = AdapterStore(folder)
    assert store.adapter.tasks.known() == ["parity", "echo", "order"]
    assert room(store.adapter) == third.room
    assert store.record("parity")["form"]["prompt"] == TEMPLATES[0]


def test_forgetting_leaves_the_others_bit_for_bit(learnt, tmp_path: Path) -> None:
    folder = shutil.copytree(learnt[0], tmp_path / "mine")
    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.arange(5, 25)[None]

    def logits(model: Any, task: str) -> torch.Tensor:
        model.set_task(task)
        with torch.no_grad():
            return model(input_ids=tokens).logits

    before = {task: logits(model, task) for task in ("parity", "order")}
    free = room(AdapterStore(folder).adapter)
    AdapterStore(folder).forget("echo")
    after = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert after.tasks == ["parity", "order"]
    for task, expected in before.items():
        assert torch.equal(logits(after, task), expected)
    assert room(AdapterStore(folder).adapter) == free + 1
    assert AdapterStore(folder).record("echo") == {}
    assert not (folder / "kept" / "echo.json").exists()


def test_forgetting_leaves_what_peft_has_saved_beside_the_adapter(files: Path, tmp_path: Path) -> None:
    folder, name = tmp_path / "mine", "adapter_model.safetensors"
    saved_by_peft(folder, files / "base", ended=True, vocabulary=390)
    before = {one: tensor for one, tensor in load_file(folder / name).items() if "shared" not in one}
    AdapterStore(folder).forget("half")
    after = load_file(folder / name)
    assert len(before) == 2
    assert all(torch.equal(after[one], tensor) for one, tensor in before.items())
    assert AdapterStore(folder).adapter.tasks.known() == ["first"]


def test_a_known_task_is_learnt_further_in_its_form(learnt, files: Path, tmp_path: Path) -> None:
    folder, (first, _, third) = shutil.copytree(learnt[0], tmp_path / "mine"), learnt[1]
    shutil.rmtree(folder / "kept")
    again = learn(
        folder, str(files / "parity.jsonl"), "parity", options(files, checks={"echo": str(files / "echo.jsonl")})
    )
    assert again.task.metric == "accuracy"
    assert again.task.before == first.task.after
    assert again.record["items"] == 2 * first.record["items"]
    assert again.room == third.room
    assert again.earlier[0].before == again.earlier[0].after


def test_what_was_held_out_is_not_learnt_later_under_another_seed_or_from_a_larger_file(
    files: Path, tmp_path: Path, monkeypatch
) -> None:
    learnt: list[set[str]] = []
    train = Learner.train

    def seen(learner: Learner, task: Task, training: TrainingConfig) -> TrainerState:
        learnt.append({item.prompt for item in task.train})
        return train(learner, task, training)

    monkeypatch.setattr(Learner, "train", seen)
    new = options(files, backbone=str(files / "base"), budget_mb=0.2, keep_check=True)
    learn(tmp_path / "mine", str(files / "echo.jsonl"), "echo", new)
    held = {item.prompt for item in AdapterStore(tmp_path / "mine").kept("echo") or []}
    more = write(tmp_path / "more.jsonl", [{"prompt": f"Repeat {n}:", "completion": f"{n} {n}"} for n in range(300)])
    learn(tmp_path / "mine", more, "echo", options(files, seed=1))
    assert len(held) == 6
    assert not held & (learnt[0] | learnt[1])
    assert AdapterStore(tmp_path / "mine").record("echo")["held_out_by"]["seed"] == 0


def saved_by_peft(folder: Path, backbone: Path, *, ended: bool, vocabulary: int | None = None) -> Path:
    """An adapter that a Trainer has taught ``first``, and ``half``, which it may not have ended."""
    base = AutoModelForCausalLM.from_pretrained(backbone)
    if vocabulary is not None:
        base.resize_token_embeddings(vocabulary)
    model = get_peft_model(base, HimalayaConfig(task_type="CAUSAL_LM"))
    for name in ("first", "half"):
        model.start_task(name)
        torch.nn.init.normal_(model.base_model.himalaya_shared["default"].atoms)
        if ended or name == "first":
            model.end_task()
    model.save_pretrained(folder)
    return folder


def test_an_adapter_saved_by_peft_learns_more_and_answers_as_all_its_tasks(
    files: Path, tmp_path: Path, capsys
) -> None:
    folder = saved_by_peft(tmp_path / "mine", files / "base", ended=True)
    assert main(["tasks", str(folder)]) == 0
    assert f" MB on {files / 'base'}" in capsys.readouterr().out.replace("\n", " ")
    learn(folder, str(files / "echo.jsonl"), "echo", options(files))
    assert load_adapter(folder, task="first").tasks == ("first", "half", "echo")
    told = AdapterStore(folder).facts["backbone"]
    assert told["name"] == str(files / "base")
    assert told["hidden_size"] == 64
    with pytest.raises(HimalayaError, match="are not those that the adapter in"):
        learn(folder, str(files / "order.jsonl"), "order", options(files, backbone=str(files / "other")))


def test_an_adapter_of_when_all_had_a_memory_of_gradients_goes_on(files: Path, tmp_path: Path) -> None:
    folder = saved_by_peft(tmp_path / "mine", files / "base", ended=True)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    fisher = {"residuals": torch.zeros(128, 64, dtype=torch.int8), "seen": torch.tensor(3), "energy": torch.zeros(24)}
    old = {f"base_model.himalaya_shared.fisher.{name}": one for name, one in fisher.items()}
    save_file(load_file(weights) | old, weights)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format_version": 3}))
    learn(folder, str(files / "echo.jsonl"), "echo", options(files))
    assert load_adapter(folder).tasks == ("first", "half", "echo")
    assert not any("fisher" in name for name in load_file(AdapterStore(folder).place / weights.name))


def test_a_task_that_is_still_open_is_not_taken_for_learnt(files: Path, tmp_path: Path) -> None:
    folder = saved_by_peft(tmp_path / "mine", files / "base", ended=False)
    before = folder_hash(folder)
    with pytest.raises(HimalayaError, match=r"task 'half' in .* is half learnt: himalaya forget removes it"):
        learn(folder, str(files / "echo.jsonl"), "echo", options(files))
    assert folder_hash(folder) == before
    AdapterStore(folder).forget("half")
    learn(folder, str(files / "echo.jsonl"), "echo", options(files))


def test_what_is_finished_and_not_yet_told_is_not_learnt_again(files: Path, tmp_path: Path, caplog) -> None:
    folder, echo = tmp_path / "mine", str(files / "echo.jsonl")
    new = options(files, backbone=str(files / "base"), budget_mb=0.2)

    def killed(_: Learnt) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(folder, echo, "echo", new, killed)
    before = (folder / "adapter_model.safetensors").read_bytes()
    told: list[Learnt] = []
    again = learn(folder, echo, "echo", new, told.append)
    assert told == [again]
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(KeyboardInterrupt):
        learn(folder, echo, "echo", options(files), killed)
    assert AdapterStore(folder).record("echo")["items"] == 2 * again.record["items"]  # that is another command
    store = AdapterStore(folder)
    with store.locked():
        store.forget("echo")
    assert "is dropped" not in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# Mistakes ------------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[str, str, dict[str, Any], str]] = [
    ("parity.jsonl", "x", {}, "has the columns number, parity; expected prompt and completion"),
    ("echo.jsonl", "Parity", {}, "there is a task 'parity': did you mean it"),
    ("echo.jsonl", "party", {}, "there is a task 'parity': did you mean it"),
    ("echo.jsonl", " x", {}, "expected 1 to 64 bytes"),
    ("echo.jsonl", "\udcff", {}, "expected 1 to 64 bytes"),  # a byte on the command line that is not UTF-8
    ("echo.jsonl", "auto", {}, "choose another name"),
    ("nowhere.jsonl", "x", {}, "there is no file"),
    ("three.jsonl", "x", {}, "gives 3 different items"),
    ("empty.jsonl", "x", {}, "row 10 of .* has an empty target"),
    ("long.jsonl", "x", {}, "row 10 of .* has .* tokens .* reads at most 512"),
    ("echo.jsonl", "x", {"backbone": "wide"}, "is for another backbone: .* hidden_size=64"),
    ("echo.jsonl", "x", {"backbone": "other"}, "are not those that the adapter in .* has learnt on"),
    ("echo.jsonl", "x", {"budget_mb": 1.0}, "room and placement were decided when it was made"),
    ("echo.jsonl", "x", {"placement": "weights"}, "room and placement were decided when it was made"),
    ("echo.jsonl", "x", {"atoms_per_task": 3}, "room and placement were decided when it was made"),
    (
        "echo.jsonl",
        "x",
        {"checks": {"parrot": "echo.jsonl"}},
        "unknown task in --check 'parrot'; did you mean 'parity'",
    ),
    ("echo.jsonl", "x", {"checks": {"parity": "odd.jsonl"}}, "has the answer 'never'; the task has learnt: no, yes"),
    ("echo.jsonl", "parity", {}, "the task has been learnt as 'Is {number} even"),
    ("echo.jsonl", "x", {"metric": "chr"}, "unknown metric 'chr'"),
    ("echo.jsonl", "x", {"learning_rate": math.inf}, "himalaya learn: found Infinity, expected a number above 0"),
    ("echo.jsonl", "x", {"learning_rate": 0.0}, "himalaya learn: found 0.0, expected a number above 0"),
    ("echo.jsonl", "x", {"seed": -1}, "'seed' of himalaya learn: found -1, expected a whole number of at least 0"),
]


@pytest.mark.parametrize(("file", "name", "said", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(
    learnt, files: Path, file: str, name: str, said: dict[str, Any], message: str
) -> None:
    folder, _ = learnt
    write(files / "three.jsonl", [{"prompt": f"{n}", "completion": "x"} for n in range(3)])
    write(files / "odd.jsonl", [{"number": 3, "parity": "never"}])
    write(files / "empty.jsonl", [{"prompt": f"{n}", "completion": "x" * (n < 9)} for n in range(10)])
    write(files / "long.jsonl", [{"prompt": f"{n} " * (400 if n == 9 else 1), "completion": "x"} for n in range(10)])
    if "parity" in said.get("checks", {}):
        said = {"checks": {"parity": str(files / said["checks"]["parity"])}}
    if "backbone" in said:
        said = {"backbone": str(files / said["backbone"])}
    before = folder_hash(folder)
    with pytest.raises(HimalayaError, match=message) as caught:
        learn(folder, str(files / file), name, options(files, **said))
    assert "\n" not in str(caught.value)
    assert folder_hash(folder) == before


def test_a_task_that_does_not_fit(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for budget in (math.nan, 0.0, 0.01):
        too_small = options(files, backbone=str(files / "base"), budget_mb=budget)
        with pytest.raises(HimalayaError, match=f"--budget-mb {budget:g} has no room for one task") as caught:
            learn(folder, str(files / "echo.jsonl"), "echo", too_small)
        assert not folder.exists()
    smallest = float(str(caught.value).split("it takes ")[1].split()[0])
    one_task = options(files, backbone=str(files / "base"), budget_mb=smallest)
    assert learn(folder, str(files / "echo.jsonl"), "echo", one_task).room == 0
    before = folder_hash(folder)
    with pytest.raises(HimalayaError, match="no room for another task"):
        learn(folder, str(files / "order.jsonl"), "order", options(files))
    assert folder_hash(folder) == before
    learn(folder, str(files / "echo.jsonl"), "echo", options(files))  # further, in its own slots


def test_a_link_to_nowhere_is_refused_before_any_work(files: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to("nowhere")
    no_backbone = replace(options(files), backbone=str(tmp_path / "none"))  # would be told if it were looked for
    with pytest.raises(HimalayaError, match=r"mine is a link to nowhere, which is not there: delete it"):
        learn(tmp_path / "mine", str(files / "echo.jsonl"), "echo", no_backbone)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_no_adapter(files: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(HimalayaError, match=r"is no adapter: it has no adapter_config.json"):
        learn(tmp_path / "mine", str(files / "echo.jsonl"), "echo", options(files, backbone=str(files / "base")))


def test_a_backbone_beside_is_found_from_everywhere_and_whether_answers_are_lines_is_kept(
    files: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.chdir(files)
    folder, new = tmp_path / "mine", options(files, backbone="base", budget_mb=0.2)
    rows = [{"prompt": f"Poem {n}:", "completion": f"{n}\n{n}"} for n in range(12)]
    learn(folder, write(tmp_path / "poem.jsonl", rows), "poem", new)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(files / "base")
    monkeypatch.chdir(tmp_path)
    AutoPeftModelForCausalLM.from_pretrained(folder)
    line = write(tmp_path / "line.jsonl", [{"prompt": f"Poem {n}:", "completion": f"{n}"} for n in range(60, 90)])
    learn(folder, line, "poem", options(files, checks={"poem": line}))
    assert AdapterStore(folder).record("poem")["form"]["lines"] is False  # as some answers were before
    assert f"--check poem={line} is left out: what is learnt is scored on its held-out items" in caplog.text
    learn(folder, str(files / "echo.jsonl"), "echo", options(files))
    assert AdapterStore(folder).record("echo")["form"]["lines"] is True


# What stands beside the adapter --------------------------------------------------------------------------------


def edited(name: str, change: Callable[[Any], Any], folder: Path) -> Path:
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda told: {**told, "tasks": {**told["tasks"], "parity": {}}}, "its content does not match its hash"),
        (lambda told: {key: value for key, value in told.items() if key != "sha256"}, "it has no hash"),
        (lambda told: [], "it has no hash"),
        (lambda told: sealed({**told, "format": 2}), "its content does not match"),
        (lambda told: sealed({"format": 2}), "written by a newer himalaya-adapter"),
        (lambda told: sealed({"format": 1}), "'files'"),
    ],
    ids=["edited", "of before", "list", "hash within a hash", "newer", "nothing in it"],
)
def test_tasks_json_that_was_changed_is_refused_with_what_to_do(
    learnt, files: Path, tmp_path: Path, change: Callable[[Any], Any], told: str
) -> None:
    folder = shutil.copytree(learnt[0], tmp_path / "mine")
    edited("tasks.json", change, folder)
    before = folder_hash(folder)
    for use in (
        lambda: AdapterStore(folder).record("parity"),
        lambda: load_adapter(folder),
        lambda: learn(folder, str(files / "echo.jsonl"), "echo", options(files)),
        lambda: AdapterStore(folder).forget("echo"),
    ):
        with pytest.raises(HimalayaError, match=rf"tasks\.json is damaged: .*{told}.*or delete it") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert folder_hash(folder) == before
    (folder / "tasks.json").unlink()
    assert load_adapter(folder).tasks == ("parity", "echo", "order")
    assert AdapterStore(folder).record("parity") == {}
    learn(folder, str(files / "echo.jsonl"), "echo", options(files))  # also where items were kept
    facts = AdapterStore(folder).facts
    assert [name for name, record in facts["tasks"].items() if record] == ["echo"]
    assert load_adapter(folder, task="parity").tasks == ("parity", "echo", "order")


def test_another_kind_of_adapter_is_named(learnt, tmp_path: Path) -> None:
    for peft_type, found in (("LORA", "LORA"), ("HIMALAYA", "a release"), (None, "no adapter")):
        config = {"peft_type": peft_type, "released": True} if peft_type else {}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(HimalayaError, match=rf"no adapter that goes on learning \(found: {found}\)"):
            _ = AdapterStore(tmp_path).adapter


@pytest.mark.parametrize("other", ["tasks.json", "adapter_model.safetensors", "adapter_config.json"])
def test_files_of_two_adapters_do_not_go_together(learnt, tmp_path: Path, other: str) -> None:
    folder, forgetful = (shutil.copytree(learnt[0], tmp_path / name) for name in ("mine", "forgetful"))
    AdapterStore(forgetful).forget("echo")
    config = json.loads((forgetful / "adapter_config.json").read_text())
    (forgetful / "adapter_config.json").write_text(json.dumps(config | {"norm_bound": 1.0}))
    shutil.copy(forgetful / other, folder / other)
    with pytest.raises(HimalayaError, match=r"tasks\.json is damaged: it was not written with the adapter_config"):
        load_adapter(folder)


def test_kept_items_that_were_changed_are_refused(learnt, files: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(learnt[0], tmp_path / "mine")
    kept = folder / "kept" / "parity.json"
    shutil.copy(folder / "kept" / "echo.json", kept)
    with pytest.raises(HimalayaError, match=r"parity\.json is damaged: it is of task 'echo'; delete it"):
        learn(folder, str(files / "order.jsonl"), "order", options(files))
    kept.write_text("[]")
    with pytest.raises(HimalayaError, match=r"parity\.json is damaged: it has no hash"):
        learn(folder, str(files / "order.jsonl"), "order", options(files))


def test_a_task_s_name_leads_nowhere_else(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "place" / "mine"
    new = options(files, backbone=str(files / "base"), budget_mb=0.2, keep_check=True)
    learn(folder, str(files / "echo.jsonl"), "../../out", new)
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert [path.name for path in (folder / "kept").iterdir()] == ["..%2F..%2Fout.json"]
    again = learn(folder, str(files / "order.jsonl"), "order", options(files))
    assert [change.task for change in again.earlier] == ["../../out"]
    AdapterStore(folder).forget("../../out")
    assert not [*(folder / "kept").iterdir()]


def test_the_folder_may_be_named_by_a_dot(learnt, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(shutil.copytree(learnt[0], tmp_path / "mine"))
    with AdapterStore(Path(".")).locked():
        AdapterStore(Path(".")).forget("echo")
    assert AdapterStore(tmp_path / "mine").adapter.tasks.known() == ["parity", "order"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
