"""LoRAs from a HIMALAYA run: plain PEFT adapters, exact on weights and fitted on the residual stream."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_runs import TASKS, run_words
from torch import Tensor

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.deploy.lora_export import TABLE_FILE, export_lora
from himalaya_adapter.deploy.lora_fit import Moments, last_linears, reduced_ridge
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods import GlodisConfig
from himalaya_adapter.methods.himalaya import HimalayaLayer
from himalaya_adapter.storage import read_json

WEIGHTS = {"placement": "weights", "target_modules": ["k_proj", "o_proj"]}
PROMPTS = {
    "parity": "Is 12 even?\nAnswer:",
    "colour_word": "Text: the red dog 7 was on the sofa\nColour:",
    "echo": "Repeat 5:",
}
# Loads each LoRA as a server without this package does, and keeps the logits of its task's prompt.
PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
backbone, target, prompts = sys.argv[1:]
logits = {}
with torch.no_grad():
    for folder, tokens in json.loads(prompts).items():
        model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
        logits[folder] = PeftModel.from_pretrained(model, folder).eval()(input_ids=torch.tensor([tokens])).logits
assert "himalaya_adapter" not in sys.modules
save_file(logits, target)
"""


def with_adapter(run: Path, folder: Path, model: Any, config: Any) -> Path:
    """A copy of a run's folder with another adapter in it."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "adapter")
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def runs(place: Path, tiny_model: Any) -> dict[str, Path]:
    """A run on the residual stream, and one with an adapter of the other placement that does something at random."""
    assert main([*run_words(place, "HIMALAYA"), f"results_dir={place / 'out'}"]) == 0
    stream = place / "out" / "himalaya"
    weights = HimalayaConfig(task_type="CAUSAL_LM", init_weights=False, **WEIGHTS)
    return {"stream": stream, "weights": with_adapter(stream, place / "weights", tiny_model(), weights)}


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], place: Path) -> dict[str, Path]:
    """What the command has written for each run."""
    for name, run in runs.items():
        words = ["export", str(run), "--format", "lora", "--output", str(place / "lora" / name)]
        assert main(words) == 0
    return {name: place / "lora" / name for name in runs}


def logits_of(model: torch.nn.Module, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits


def test_each_task_has_a_folder_and_a_row_of_scores(exported: dict[str, Path], runs: dict[str, Path]) -> None:
    trained = read_json(runs["stream"] / "metrics.json")["tasks"]
    for name, folder in exported.items():
        assert {path.name for path in folder.iterdir()} == {*TASKS, TABLE_FILE}
        rows = read_json(folder / TABLE_FILE)["tasks"]
        assert [row["task"] for row in rows] == list(TASKS)
        if name == "stream":
            assert [row["routed"] for row in rows] == pytest.approx([task["final"]["score"] for task in trained])
        for row in rows:
            assert min(row["frozen"], row["lora"]) >= 0
            assert row["loss"] == pytest.approx(row["routed"] - row["lora"])
            if name == "weights":
                assert (row["rank"], row["explained"]) == (1, [])
                assert row["lora"] == pytest.approx(row["frozen"])
            else:
                assert (row["rank"], len(row["explained"])) == (3, 2)
                assert all(0 < share <= 1 for share in row["explained"])
        card = (folder / "echo" / "README.md").read_text(encoding="utf-8")
        assert ("exactly" if name == "weights" else "It is a fit") in card
        texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*.*") if path.suffix != ".safetensors"]
        assert not any(str(runs[name].parent.parent) in text for text in texts), "no path of this machine"
        assert read_json(folder / "echo" / "adapter_config.json")["base_model_name_or_path"] == "backbone"


def test_plain_peft_loads_them_without_this_package(
    exported: dict[str, Path], runs: dict[str, Path], place: Path
) -> None:
    tokenizer = load_adapter(runs["stream"]).tokenizer
    prompts = {task: tokenizer(prompt)["input_ids"] for task, prompt in PROMPTS.items()}
    folders = {str(folder / task): prompts[task] for folder in exported.values() for task in TASKS}
    target = str(place / "logits.safetensors")
    words = [sys.executable, "-c", PLAIN_PEFT, str(place / "backbone"), target, json.dumps(folders)]
    subprocess.run(words, check=True, capture_output=True)
    plain = load_file(target)
    for name, run in runs.items():
        model = load_adapter(run).model
        for task, tokens in prompts.items():
            found = plain[str(exported[name] / task)]
            with model.disable_adapter():
                base = logits_of(model, tokens)
            model.set_task(task)
            routed = logits_of(model, tokens)
            model.freeze_routing(task)
            frozen = logits_of(model, tokens)
            if name == "weights":
                assert (frozen - base).abs().max() > 1e-3
                torch.testing.assert_close(found, frozen, rtol=0, atol=1e-5)
            else:
                assert (found - routed).norm() < 0.5 * (base - routed).norm(), "nearer to the adapter than without it"


def test_a_fitted_lora_adds_what_the_atoms_in_use_can_add(exported: dict[str, Path], runs: dict[str, Path]) -> None:
    model = load_adapter(runs["stream"]).model
    shared = model.base_model.himalaya_shared["default"]
    atoms = shared.dictionary.atoms()[shared.in_use].detach().T
    assert atoms.shape[1] < len(atoms), "directions outside their span exist"
    config = read_json(exported["stream"] / "echo" / "adapter_config.json")
    assert (config["peft_type"], config["target_modules"], config["r"]) == ("LORA", ["down_proj"], 3)
    state = load_file(exported["stream"] / "echo" / "adapter_model.safetensors")
    outward = [tensor for name, tensor in state.items() if "lora_B" in name]
    assert len(outward) == 2
    for up in outward:
        deviation = up - atoms @ torch.linalg.lstsq(atoms, up).solution
        assert deviation.abs().max() < 1e-5 * up.abs().max()


def moments(inputs: Tensor, targets: Tensor) -> Moments:
    found = Moments()
    for part in range(2):
        found.add(inputs[part::2], targets[part::2])
    return found


def test_the_fit_finds_a_map_of_low_rank_and_says_what_it_cannot_explain() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, truth = (torch.randn(600, 10, generator=generator) for _ in range(2))
    weight = truth[:2].T @ torch.randn(2, 5, generator=generator)
    targets = inputs @ weight
    down, up, explained = reduced_ridge(moments(inputs[:400], targets[:400]), moments(inputs[400:], targets[400:]), 2)
    assert (down.shape, up.shape) == ((2, 10), (5, 2))
    torch.testing.assert_close((up @ down).T, weight, rtol=0, atol=5e-3 * weight.abs().max().item())
    assert explained > 0.9999
    # Of a map of rank 2 plus noise of the same energy, half is explained; at rank 1 only the larger part of the map.
    noise = torch.randn(600, 5, generator=generator)
    noisy = targets + noise * (targets.square().sum() / noise.square().sum()).sqrt()
    _, _, half = reduced_ridge(moments(inputs[:400], noisy[:400]), moments(inputs[400:], noisy[400:]), 2)
    assert half == pytest.approx(0.5, abs=0.08)
    down, up, part = reduced_ridge(moments(inputs[:400], targets[:400]), moments(inputs[400:], targets[400:]), 1)
    held_out = targets[400:]
    assert part < 0.99
    assert part == pytest.approx(
        1 - ((inputs[400:] @ (up @ down).T - held_out).square().sum() / held_out.square().sum()).item(), abs=0.02
    )


def test_a_module_that_does_not_end_in_a_linear_one_is_refused(tiny_model: Any) -> None:
    model = get_peft_model(tiny_model(), HimalayaConfig(target_modules=["input_layernorm"])).eval()
    layers = [module for module in model.modules() if isinstance(module, HimalayaLayer)]
    with pytest.raises(HimalayaError, match="a LlamaRMSNorm does not end in a linear module, so no LoRA can stand"):
        last_linears(model, layers, [1, 2, 3])


def mistake(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command line with a mistake in it ends with."""
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


def test_mistakes_are_told_in_one_line(
    runs: dict[str, Path], place: Path, tmp_path: Path, tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(runs["stream"]), "--format", "lora", "--output", str(tmp_path / "new")]
    assert "unknown task 'ecko'; did you mean 'echo'?" in mistake([*words, "--task", "ecko"], capsys)
    assert "none is no run's folder: a LoRA is fitted" in mistake(
        ["export", str(tmp_path / "none"), *words[2:]], capsys
    )
    assert "--opset says nothing to --format lora" in mistake([*words, "--opset", "18"], capsys)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "full is not an empty folder" in mistake([*words[:-1], str(tmp_path / "full")], capsys)
    for config, wanted in (
        (LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"), "is a LoRA already: that folder is what a"),
        (GlodisConfig(task_type="CAUSAL_LM"), "is of method GLODIS: only a HIMALAYA adapter is exported as LoRA"),
    ):
        other = with_adapter(runs["stream"], tmp_path / config.peft_type.value, tiny_model(), config)
        assert wanted in mistake(["export", str(other), *words[2:]], capsys)
    without_stream = tmp_path / "without_stream"
    shutil.copytree(runs["stream"], without_stream)
    written = (without_stream / "config.yaml").read_text(encoding="utf-8")
    moved = written.replace(str(place / "stream.yaml"), str(tmp_path / "gone.yaml"))
    (without_stream / "config.yaml").write_text(moved, encoding="utf-8")
    assert "gone.yaml" in mistake(["export", str(without_stream), *words[2:]], capsys)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".new*")), "nothing half written is left"


def test_a_release_is_exported_and_only_the_tasks_that_are_asked_for(runs: dict[str, Path], tmp_path: Path) -> None:
    (row,) = export_lora(runs["stream"] / "release", tmp_path / "lora", ["echo"])
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"echo", TABLE_FILE}
    assert json.loads((tmp_path / "lora" / TABLE_FILE).read_text())["tasks"][0]["loss"] == row.loss
    released = read_json(runs["stream"] / "metrics.json")["tasks"][2]["released"]
    assert row.routed == pytest.approx(released["score"])
