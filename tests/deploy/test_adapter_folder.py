"""A finished adapter answers wherever it lies: in its run, copied away, on a hub; and its card says what it is."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub
import yaml
from fake_hub import fake_hub
from huggingface_hub import HfApi, ModelCard
from learnt import learn
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from safetensors.torch import load_file
from tiny_runs import TASKS, run_words, write_backbone
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from himalaya_adapter import save_release
from himalaya_adapter.backbones.catalogue import converted_place
from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import LoadedAdapter, load_adapter
from himalaya_adapter.deploy.answering import answer
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.storage import read_json, write_json

PROMPTS = {"parity": "Is 12 even?\nAnswer:", "echo": "Repeat 12:"}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A finished run of HIMALAYA; tests leave it as it is."""
    words = run_words(place, "HIMALAYA", max_updates_per_task=2)
    assert main([*words, f"results_dir={place / 'out'}"]) == 0
    return place / "out" / "himalaya"


@pytest.fixture(scope="module")
def others(place: Path) -> Path:
    """The folder of finished runs of a method without tasks and of one that cannot tell them."""
    for method in ("LORA", "COLTAS"):
        assert main([*run_words(place, method, max_updates_per_task=1), f"results_dir={place / 'out'}"]) == 0
    return place / "out"


def generated(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """What `himalaya generate` prints: the answer, and the line about the task."""
    capsys.readouterr()
    assert main(["generate", *map(str, arguments), "--max-new-tokens", "6"]) == 0
    printed = capsys.readouterr()
    return printed.out, "".join(line for line in printed.err.splitlines() if line.startswith("task "))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["generate", *map(str, arguments)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("himalaya: ")
    return last


# The card ------------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_release_is_to_machines(run: Path, place: Path) -> None:
    data = ModelCard.load(run / "release" / "README.md").data
    metrics, environment = read_json(run / "metrics.json"), read_json(run / "environment.json")
    assert (data.library_name, data.base_model, data.pipeline_tag) == ("peft", "backbone", "text-generation")
    assert {"continual-learning", "base_model:adapter:backbone"} <= set(data.tags)
    facts = data.to_dict()["himalaya"]
    assert facts["tasks"] == list(TASKS)
    assert facts["backbone"] == {
        "name": "backbone",
        "revision": environment["backbone_revision"],
        "quantisation": None,
        **{"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": environment["backbone_sizes"]["vocab_size"]},
    }
    found = {one.dataset_config: (one.metric_type, one.metric_value) for one in data.eval_results}
    assert found == {task["name"]: (task["metric"], task["released"]["score"]) for task in metrics["tasks"]}


def test_the_card_says_it_to_people(run: Path) -> None:
    text = ModelCard.load(run / "release" / "README.md").text
    metrics = read_json(run / "metrics.json")
    assert text.index("import himalaya_adapter") < text.index("PeftModel.from_pretrained")
    assert f"{(run / 'release' / WEIGHTS).stat().st_size:,} bytes" in text
    sizes = [
        int(row.split("|")[2].replace(",", "")) for row in text.split("| part |")[1].split("\n\n")[0].split("\n")[2:]
    ]
    assert sum(sizes) == metrics["released_bytes"]
    assert f"{metrics['update_norm_max']:.4f} of an update (bound 2.0)" in text
    for task in metrics["tasks"]:
        assert f"| {task['name']} |" in text
        assert f"{task['released']['score']:.3f}" in text
    assert "the user's own data" in text
    knows = text.split("## What it knows, and what it does not")[1].split("##")[0]
    better = [task["name"] for task in metrics["tasks"] if task["final"]["low"] > task["before"]["high"]]
    assert all((task in knows.split("not clearly learnt")[0]) == (task in better) for task in TASKS)
    assert all(task in knows for task in TASKS)


def test_only_the_config_of_a_release_says_where_the_backbone_lies_for_that_is_how_peft_finds_it(
    run: Path, place: Path
) -> None:
    for path in (run / "release").iterdir():
        content = path.read_bytes()
        assert (str(place).encode() in content) == (path.name == "adapter_config.json"), path.name
    config = read_json(run / "release" / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(place / "backbone")
    assert AutoPeftModelForCausalLM.from_pretrained(run / "release").tasks == list(TASKS)
    assert config["revision"] == read_json(run / "environment.json")["backbone_revision"]


def test_a_backbone_of_the_catalogue_is_called_by_its_name_and_found_where_it_is(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the cache is another one than that of whoever made the adapter."""
    monkeypatch.setenv("HIMALAYA_CACHE", str(tmp_path / "mine"))
    backbone = shutil.copytree(place / "backbone", converted_place("smollm2-135m"))
    model = learn(AutoModelForCausalLM.from_pretrained(backbone))
    model.save_pretrained(tmp_path / "adapter")
    save_release(model, tmp_path / "release")
    for kind in ("adapter", "release"):
        written = (tmp_path / kind / "adapter_config.json").read_text(encoding="utf-8")
        assert json.loads(written)["base_model_name_or_path"] == "smollm2-135m"
        assert str(tmp_path) not in written
    assert load_adapter(tmp_path / "release", backbone=str(backbone)).tasks == TASKS

    assert shutil.move(tmp_path / "mine", tmp_path / "theirs")
    assert PeftConfig.from_pretrained(tmp_path / "release").base_model_name_or_path == "smollm2-135m"
    monkeypatch.setenv("HIMALAYA_CACHE", str(tmp_path / "theirs"))
    for kind in ("adapter", "release"):
        found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / kind)
        assert found.tasks == list(TASKS)
        found.save_pretrained(tmp_path / "again")
        assert read_json(tmp_path / "again" / "adapter_config.json")["base_model_name_or_path"] == "smollm2-135m"


# Where it lies -------------------------------------------------------------------------------------------------


def test_the_same_answer_from_run_adapter_and_release_and_from_copies_of_them(
    run: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("adapter", "release"):
        shutil.copytree(run / kind, tmp_path / f"moved_{kind}")
        here = generated(capsys, run / kind, PROMPTS["echo"], "--task", "echo")
        moved = generated(
            capsys, tmp_path / f"moved_{kind}", PROMPTS["echo"], "--task", "echo", "--backbone", place / "backbone"
        )
        assert moved == here
        assert here[0] != ""
    assert generated(capsys, run, PROMPTS["echo"], "--task", "echo") == generated(
        capsys, run / "adapter", PROMPTS["echo"], "--task", "echo"
    )
    assert load_adapter(tmp_path / "moved_release", backbone=str(place / "backbone")).tasks == TASKS
    # PEFT has written where the training's backbone lies, and the adapter itself knows its tasks.
    for kind in ("adapter", "release"):
        moved = load_adapter(tmp_path / f"moved_{kind}")
        assert (moved.tasks, moved.backbone) == (TASKS, str(place / "backbone"))


def test_a_release_goes_to_a_hub_and_answers_from_there(
    run: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through PEFT's `push_to_hub` and the real client, against a server that keeps what it is sent."""
    with fake_hub() as (address, repositories):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # PEFT asks the real hub about the backbone otherwise
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        hub = HfApi(endpoint=address, token="token")
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", hub)
        hub.create_repo("owner/name")
        hub.upload_file(path_or_fileobj=run / "release" / "README.md", path_in_repo="README.md", repo_id="owner/name")
        model = load_adapter(run / "release").model
        model.push_to_hub("owner/name", token="token")
        sent = repositories["owner/name"]
        assert sent.keys() == {"README.md", "adapter_config.json", WEIGHTS}
        assert sent[WEIGHTS] == (run / "release" / WEIGHTS).read_bytes()
        assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == str(place / "backbone")
        assert ModelCard(sent["README.md"].decode()).data.to_dict()["himalaya"]["tasks"] == list(TASKS)
        prompt = PROMPTS["echo"]
        there = generated(capsys, "owner/name", prompt, "--task", "echo", "--backbone", place / "backbone")
        assert there == generated(capsys, run / "release", prompt, "--task", "echo")
        assert "owner/other is no folder here" in refused(capsys, "owner/other", prompt)
        repositories["owner/empty"] = {"README.md": b"nothing"}
        assert "owner/empty on the hub holds no adapter" in refused(capsys, "owner/empty", prompt)


# The task ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", PROMPTS)
def test_without_a_task_the_prompt_says_it(task: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_itself, line = generated(capsys, run, PROMPTS[task])
    assert line.startswith(f"task {task}, confidence ")
    assert 0 < float(line.split()[-1]) <= 1
    named, silence = generated(capsys, run, PROMPTS[task], "--task", task)
    assert by_itself == named
    assert silence == ""


def test_an_adapter_knows_its_tasks_without_its_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(run / "adapter", tmp_path / "moved")
    assert generated(capsys, moved, PROMPTS["echo"]) == generated(capsys, run, PROMPTS["echo"])
    assert "unknown task 'ecco'; did you mean 'echo'" in refused(capsys, moved, "text", "--task", "ecco")


def test_a_method_without_tasks_answers_and_one_that_cannot_tell_them_asks(
    others: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    answered, line = generated(capsys, others / "lora", PROMPTS["echo"])
    assert answered != ""
    assert line == ""
    assert generated(capsys, others / "lora", PROMPTS["echo"], "--task", "echo")[0] == answered
    assert "an adapter of LORA answers alike for all tasks: 'echo' changes nothing" in caplog.text
    assert "unknown task 'ecco'" in refused(capsys, others / "lora", "text", "--task", "ecco")
    assert "COLTAS cannot tell a task from its prompt: name one with --task (parity, colour_word, echo)" in refused(
        capsys, others / "coltas", "text"
    )
    assert generated(capsys, others / "coltas", PROMPTS["echo"], "--task", "echo")[0] != ""


# The answer ----------------------------------------------------------------------------------------------------


class Arrivals(BaseStreamer):
    """Notes the tokens, and how many there are each time some come."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.sizes: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()
        self.sizes.append(value.numel())

    def end(self) -> None:
        self.sizes.append(-1)


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedAdapter:
    return load_adapter(run, task="echo")


def test_tokens_come_one_by_one(loaded: LoadedAdapter) -> None:
    arrivals = Arrivals()
    text = answer(loaded, PROMPTS["echo"], 5, arrivals)
    prompt, *tokens, end = arrivals.sizes
    assert prompt == len(loaded.tokenizer(PROMPTS["echo"])["input_ids"])
    assert set(tokens) == {1}
    assert 1 <= len(tokens) <= 5
    assert end == -1
    assert text == answer(loaded, PROMPTS["echo"], 5)


def test_the_backbones_own_generation_settings_change_no_answer(run: Path) -> None:
    settings = {"repetition_penalty": 1.5, "num_beams": 3, "no_repeat_ngram_size": 2, "do_sample": True}
    greedy, under_settings = Arrivals(), Arrivals()
    for arrivals, changes in ((greedy, {}), (under_settings, settings)):
        loaded = load_adapter(run, task="echo")
        loaded.model.generation_config.update(eos_token_id=None, **changes)
        answer(loaded, PROMPTS["echo"], 8, arrivals)
    assert under_settings.tokens == greedy.tokens
    assert len(greedy.tokens) > 8


def test_what_is_no_text_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert "standard input holds something else than text in UTF-8" in refused(capsys, run, "-")


def test_standard_input_is_the_prompt(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPTS["echo"]))
    assert generated(capsys, run, "-", "--task", "echo") == generated(capsys, run, PROMPTS["echo"], "--task", "echo")


def test_a_long_prompt_loses_its_beginning(loaded: LoadedAdapter) -> None:
    positions = loaded.model.config.max_position_embeddings
    long = "a b c d e f g h " * positions + PROMPTS["echo"]
    tokens = loaded.tokenizer(long)["input_ids"]
    assert len(tokens) > positions
    last = loaded.tokenizer.decode(tokens[4 - positions :])
    assert answer(loaded, long, 4) == answer(loaded, last, 4)
    with pytest.raises(HimalayaError, match=f"max_new_tokens={positions}: the backbone has {positions} positions"):
        answer(loaded, "text", positions)


# What does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "hidden_size=64, backbone has 32"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=2, backbone has 3"),
        ({"vocab_size": 777}, "has 777"),
    ],
)
@pytest.mark.parametrize("moved", [False, True])
def test_another_backbone_is_one_clear_line(
    moved: bool,
    changes: dict[str, int],
    message: str,
    run: Path,
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer, **changes)
    monkeypatch.chdir(tmp_path)
    if moved:
        shutil.copytree(run / "release", tmp_path / "moved")
    line = refused(capsys, "moved" if moved else run, "text", "--backbone", "backbone")
    assert "is for another backbone: it was trained on" in line
    assert message in line


def test_other_weights_of_the_same_shape_are_told(
    run: Path, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_backbone(tmp_path / "other", tiny_model, tiny_tokenizer, seed=1)
    load_adapter(run, backbone=str(other))
    assert "is not what the adapter was trained on: sha256:" in caplog.text
    caplog.clear()
    load_adapter(run)
    assert "is not what" not in caplog.text


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "environment.json"])
def test_a_damaged_file_of_a_run_is_one_clear_line(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    content = (copied / name).read_text(encoding="utf-8")
    for damaged in (content[: len(content) // 2] + "\n{", "[]"):
        (copied / name).write_text(damaged, encoding="utf-8")
        assert f"of the run in {copied} is damaged" in refused(capsys, copied, "text")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda card: card.replace("- echo", "- ecco"), "README.md is damaged: its content does not match its hash"),
        (lambda card: card.replace("\nhimalaya:", "\nhimalya:"), "README.md is damaged: it has no hash"),
        (lambda card: card.replace("  sha256:", "  sha2567:"), "README.md is damaged: it has no hash"),
    ],
    ids=["another task", "no facts", "no hash"],
)
def test_a_card_that_was_changed_is_refused(
    edit: Callable[[str], str], told: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(run / "release", tmp_path / "moved")
    card = (moved / "README.md").read_text(encoding="utf-8")
    assert edit(card) != card
    (moved / "README.md").write_text(edit(card), encoding="utf-8")
    assert told in refused(capsys, moved, "text")


def test_an_adapter_of_a_run_whose_bytes_changed_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(run / "adapter", tmp_path / "moved")
    (moved / "onnx").mkdir()
    (moved / "onnx" / "adapter.onnx").touch()  # what has come since changes nothing
    assert load_adapter(moved).tasks == TASKS
    weights = bytearray((moved / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (moved / WEIGHTS).write_bytes(weights)
    assert "is damaged: its files are not those of complete.json" in refused(capsys, moved, "text")


def test_a_slip_in_a_folders_name_is_not_looked_for_on_the_hub(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent.parent)
    assert "out/himalya is not a finished run" in refused(capsys, "out/himalya", "text")
    with pytest.raises(HimalayaError, match="owner/name is not a finished run"):
        load_adapter(Path("owner/name"))


def test_what_is_missing_or_damaged_is_one_clear_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(run / "release", tmp_path / "moved")
    config = moved / "adapter_config.json"
    write_json(config, read_json(config) | {"base_model_name_or_path": "backbone"})  # a path of another machine
    told = refused(capsys, moved, "text")
    assert f"the backbone 'backbone' of the adapter in {moved} is not here: unknown backbone 'backbone'" in told
    assert "unknown task 'ecco'; did you mean 'echo'" in refused(capsys, moved, "text", "--task", "ecco")
    card = (moved / "README.md").read_text()
    (moved / "README.md").write_text(card.replace("himalaya:", "himalaya: [", 1))
    assert "README.md is damaged" in refused(capsys, moved, "text")
    (moved / "README.md").write_text(card)
    config.write_text("{")
    assert "adapter_config.json is damaged" in refused(capsys, moved, "text")
    (moved / WEIGHTS).unlink()
    assert f"has lost its file {WEIGHTS}" in refused(capsys, moved, "text")
    (tmp_path / "empty").mkdir()
    assert "empty is not a finished run" in refused(capsys, tmp_path / "empty", "text")


def test_peft_alone_opens_a_release_on_the_backbone(run: Path, place: Path) -> None:
    """As the card says."""
    from himalaya_adapter.backbones import load_backbone

    model = PeftModel.from_pretrained(load_backbone(str(place / "backbone")).model, run / "release").eval()
    model.set_task("parity")
    assert model.peft_config["default"].released
    assert load_file(run / "release" / WEIGHTS)
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["backbone"]["name"] == str(place / "backbone")
