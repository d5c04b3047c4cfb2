"""A bundle is whole, runs with numpy and ONNX Runtime alone, and computes there what PyTorch computes here."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from learnt import write_learnt
from tiny_runs import TASKS, write_backbone
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.deploy.bundle import writer
from himalaya_adapter.deploy.bundle.runner.command import main as runner_main
from himalaya_adapter.deploy.bundle.runner.manifest import digest, sha256
from himalaya_adapter.identity import files_identity, sealed
from himalaya_adapter.learning.data import Form
from himalaya_adapter.storage import read_json, write_json

NEEDED = ("numpy", "onnxruntime")
PROMPT = [5, 17, 40, 9]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@pytest.fixture(scope="module")
def learnt(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., LlamaForCausalLM],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """The folder of an adapter on a model of one layer; `himalaya learn` has written the form of two of its tasks."""
    place = tmp_path_factory.mktemp("learnt")
    backbone = write_backbone(place / "backbone", tiny_model, tiny_tokenizer, num_hidden_layers=1)
    folder = write_learnt(place / "learnt", backbone)
    forms = {"colour_word": Form("Text: {text}\nColour:", "{colour}"), "echo": Form("", "", chat=True)}
    files = files_identity(folder / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    records = {"parity": {}} | {task: {"form": asdict(form)} for task, form in forms.items()}
    write_json(folder / "tasks.json", sealed({"format": 1, "backbone": {}, "tasks": records, "files": files}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def graphs_of_one_export() -> Iterator[None]:
    """All bundles here are of one adapter: its graphs are made once, which takes longest."""
    with pytest.MonkeyPatch.context() as patch:
        made, export = [], writer.whole_graph
        patch.setattr(writer, "whole_graph", lambda adapter: (made or made.append(export(adapter)) or made)[0])
        yield


@pytest.fixture(scope="module")
def bundle(learnt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    assert main(["export", str(learnt), "--format", "bundle", "--output", str(folder)]) == 0
    return folder


def clean_python(folder: Path, packages: tuple[str, ...]) -> Path:
    """An interpreter that sees the standard library and the named packages, without what they depend on."""
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    for package in map(distribution, packages):
        for top in {file.parts[0] for file in package.files or []} - {".."}:
            (site / top).symlink_to(str(package.locate_file(top)))
    return folder / "bin" / "python"


def start(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python elsewhere, as a user would."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([str(python), *words], capture_output=True, text=True, env=environment, cwd="/", timeout=120)


def test_only_numpy_and_onnxruntime_are_needed(learnt: Path, bundle: Path, tmp_path: Path) -> None:
    python = clean_python(tmp_path / "clean", NEEDED)
    for package in ("torch", "transformers", "onnx", "tokenizers", "himalaya_adapter"):
        assert f"No module named '{package}'" in start(python, "-c", f"import {package}").stderr
    runner = str(bundle / "run.py")
    checked = start(python, runner, "check")
    assert checked.returncode == 0, checked.stderr
    assert len(checked.stdout.splitlines()) == 1 + len(TASKS)
    loaded = load_adapter(learnt, task=TASKS[0], dtype="float32")
    ids = torch.tensor([PROMPT])
    expected = loaded.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )[0, len(PROMPT) :].tolist()
    expected = [token for token in expected if token != loaded.tokenizer.eos_token_id]
    words = ["generate", "--task", TASKS[0], "--tokens", ",".join(map(str, PROMPT)), "--max-new-tokens", "8"]
    answered = start(python, runner, *words)
    assert [int(word) for word in answered.stdout.split()] == expected
    text = start(python, runner, "generate", "--task", TASKS[0], "Is 3 even?")
    assert text.returncode == 2
    assert text.stderr.startswith("run.py: tokenizers is not installed: pip install ")
    assert text.stderr.count("\n") == 1


def test_missing_onnxruntime_is_one_line(bundle: Path, tmp_path: Path) -> None:
    found = start(clean_python(tmp_path / "clean", ("numpy",)), str(bundle / "run.py"), "check")
    assert found.returncode == 2
    assert found.stderr.startswith("run.py: onnxruntime is not installed: pip install numpy onnxruntime")


def test_a_text_is_answered_as_by_pytorch(learnt: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "Is 3 even?<|end|> <|pad|>\nAnswer:"  # what looks like a special token is text
    loaded = load_adapter(learnt, task="parity", dtype="float32")
    inputs = loaded.tokenizer(prompt, return_tensors="pt", split_special_tokens=True)
    tokens = loaded.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    capsys.readouterr()
    assert runner_main(bundle, ["generate", "--task", "parity", "--max-new-tokens", "12", prompt]) == 0
    assert capsys.readouterr().out == f"{expected}\n"


def test_a_text_is_put_in_the_form_of_its_task(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for text in ("the white dog", "Text: the white dog\nColour:"):
        assert runner_main(bundle, ["generate", "--task", "colour_word", text]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    message = "task 'echo' was learnt from conversations: give the tokens of a chat (--tokens)"
    assert message in one_line(bundle, ["generate", "--task", "echo", "7"], capsys)


def signed(folder: Path, **changes: object) -> None:
    """Change the manifest of a bundle, and give all files their hashes."""
    manifest = read_json(folder / "manifest.json") | changes
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"digest": digest(manifest)}), encoding="utf-8")


def test_special_tokens_are_no_text_and_a_name_may_be_written_in_either_form(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = shutil.copytree(bundle, tmp_path / "copy"), ["generate", "--max-new-tokens", "12"]
    signed(folder, tasks=["parit\u00e9", *TASKS[1:]])
    assert runner_main(folder, [*words, "--task", "parite\u0301", "x"]) == 0
    assert capsys.readouterr().out != "\n"
    tokenizer = read_json(folder / "tokenizer.json")
    names = {number: name for name, number in tokenizer["model"]["vocab"].items()}
    tokenizer["added_tokens"] += [
        {"id": token, "content": name, "special": True, **dict.fromkeys(FLAGS, False)} for token, name in names.items()
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    signed(folder)
    assert runner_main(folder, [*words, "--task", "parit\u00e9", "x"]) == 0
    assert capsys.readouterr().out == "\n"


def test_every_file_is_listed_with_its_hash(bundle: Path) -> None:
    manifest = read_json(bundle / "manifest.json")
    present = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert {name for name in present if "__pycache__" not in name} == {*manifest["files"], "manifest.json"}
    assert manifest["tasks"] == list(TASKS)
    readme = (bundle / "README.md").read_text(encoding="utf-8")
    assert all(f"`{task}`" in readme for task in TASKS)


def test_the_graphs_share_their_weights(bundle: Path) -> None:
    graphs = [onnx.load(bundle / name, load_external_data=False) for name in ("model_base.onnx", "model.onnx")]
    places = []
    for graph in graphs:
        outside = [tensor for tensor in graph.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
        assert {entry["location"] for entry in entries} == {"model_weights.bin"}
        places.append({entry["offset"] for entry in entries})
        assert all(int(entry["offset"]) % 4096 == 0 for entry in entries), "each is mapped where it lies"
    assert places[0] <= places[1]


def test_a_quantised_base_leaves_the_adapter_in_32_bits(learnt: Path, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "int4"
    odd = write_learnt(tmp_path / "odd", learnt.with_name("backbone"), names=("it's odd",))
    words = ["export", str(odd), "--format", "bundle", "--output", str(folder), "--precision", "int4"]
    assert main(words) == 0
    line = next(line for line in (folder / "README.md").read_text().splitlines() if "run.py generate" in line)
    assert shlex.split(line)[4] == "it's odd"
    low, full = (read_json(place / "manifest.json") for place in (folder, bundle))
    sizes = [(place / "model_weights.bin").stat().st_size for place in (folder, bundle)]
    assert sizes[0] < sizes[1]
    assert low["deviation"] > 1e-3 > full["deviation"]
    counts = [
        sum(node.op_type == "MatMulNBits" for node in onnx.load(folder / name, load_external_data=False).graph.node)
        for name in ("model_base.onnx", "model.onnx")
    ]
    assert counts[0] == counts[1] == 7 + 1
    assert runner_main(folder, ["check"]) == 0


def damaged(bundle: Path, folder: Path, name: str) -> Path:
    """A copy of the bundle in which one byte of a file is another."""
    shutil.copytree(bundle, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["runner/command.py", "runner/graph.py", "manifest.json"])
def test_a_damaged_runner_is_one_line(name: str, bundle: Path, tmp_path: Path) -> None:
    """Of a bundle that was cut while it was copied, in a process of its own."""
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2] + b"(")
    found = start(Path(sys.executable), str(folder / "run.py"), "check")
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "copy the bundle again" in found.stderr


def one_line(folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command prints that cannot be done."""
    capsys.readouterr()
    assert runner_main(folder, words) == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    "name", ["model_weights.bin", "model.onnx", "tokenizer.json", "logits.npy", "runner/graph.py"]
)
def test_a_damaged_file_is_named(name: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = damaged(bundle, tmp_path / "copy", name)
    assert f"the bundle's file {name} is damaged" in one_line(folder, ["check"], capsys)
    (folder / name).unlink()
    assert f"the bundle has lost its file {name}" in one_line(folder, ["check"], capsys)


def test_what_is_no_bundle_is_told(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a bundle: it has no manifest.json" in one_line(tmp_path, ["check"], capsys)
    manifest = read_json(bundle / "manifest.json")
    for damaged_manifest in ("{", "[]", '{"tasks": 1}', json.dumps(manifest | {"tolerance": 10.0})):
        (tmp_path / "manifest.json").write_text(damaged_manifest, encoding="utf-8")
        assert "is damaged" in one_line(tmp_path, ["check"], capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--task", "paritty", "x"],
            "unknown task 'paritty' (known: parity, colour_word, echo)",
        ),
        (["--task", "parity", "--tokens", "1,99999"], "token ids go from 0 to"),
        (["--task", "parity", ""], "the prompt is empty"),
        (["--task", "parity", " \n"], "the prompt is empty"),
        (["--task", "parity", "caf\udce9"], "the prompt holds something else than text in UTF-8"),
        (["--task", "parity", "x", "--max-new-tokens", "9999"], "the backbone has 512 positions for both"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str], message: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in one_line(bundle, ["generate", *words], capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments text --tokens is required"),
        (["x", "--tokens", "1"], "not allowed with argument"),
        (["--tokens", "1,x"], "argument --tokens: invalid token_ids value: '1,x'"),
        (["x", "--max-new-tokens", "0"], "argument --max-new-tokens: 0 is not a whole number from 1 to"),
        (["x", "--threads", "99999"], "argument --threads: 99999 is not a whole number from 1 to 1024"),
        (["x", "--threads", "many"], "argument --threads: invalid threads value: 'many'"),
    ],
)
def test_what_cannot_be_parsed_shows_the_usage(
    words: list[str], message: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        runner_main(bundle, ["generate", "--task", "parity", *words])
    assert message in capsys.readouterr().err


def test_other_answers_are_told(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    logits = np.load(folder / "logits.npy")
    logits[2, 7] += 0.1
    np.save(folder / "logits.npy", logits)
    signed(folder)
    assert "this machine computes something else: task colour_word" in one_line(folder, ["check"], capsys)


def test_a_folder_in_use_is_left_alone(learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(["export", str(learnt), "--format", "bundle", "--output", str(tmp_path)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_runner_measures_its_own_overhead(bundle: Path, tmp_path: Path) -> None:
    words = ["latency", "--seconds", "0.05", "--output", str(tmp_path / "latency.json")]
    done = subprocess.run([sys.executable, str(bundle / "run.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = read_json(tmp_path / "latency.json")
    assert [entry["phase"] for entry in written["measurements"]] == ["prefill", "decode"]
    assert written["device"]["onnxruntime"] in done.stdout
