"""LoRAs from an adapter in the weights: plain PEFT loads them without this package, and they answer the same."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from learnt import learn, write_learnt
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_runs import TASKS
from transformers import AutoModelForCausalLM

from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.methods.glodis import GlodisConfig
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig
from himalaya_adapter.methods.release import save_release
from himalaya_adapter.storage import read_json

TOKENS = [5, 17, 40, 9, 101]
# Loads each LoRA as a server without this package does, and keeps the logits.
PLAIN_PEFT = """
import sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
backbone, target, tokens, *folders = sys.argv[1:]
logits = {}
with torch.no_grad():
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder).eval()
        logits[folder] = model(input_ids=torch.tensor([[int(token) for token in tokens.split(",")]])).logits
assert "himalaya_adapter" not in sys.modules
save_file(logits, target)
"""


@pytest.fixture(scope="module")
def folders(place: Path) -> dict[str, Path]:
    """Adapters: in all linear modules, in some modules of one layer, and on the stream."""
    configs: dict[str, dict[str, Any]] = {
        "weights": {"placement": "weights"},
        "some": {"placement": "weights", "rank": 2, "target_modules": r".*\.1\.self_attn\.(q|o)_proj"},
        "stream": {},
    }
    return {name: write_learnt(place / name, place / "backbone", **config) for name, config in configs.items()}


def export(folder: Path, output: Path, *words: str) -> int:
    return main(["export", str(folder), "--format", "lora", "--output", str(output), *words])


def here(backbone: Path, folders: Sequence[str]) -> dict[str, torch.Tensor]:
    """The logits of PEFT's own class in this process."""
    logits = {}
    with torch.no_grad():
        for folder in folders:
            model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
            logits[folder] = PeftModel.from_pretrained(model, folder).eval()(input_ids=torch.tensor([TOKENS])).logits
    return logits


def elsewhere(backbone: Path, folders: Sequence[str]) -> dict[str, torch.Tensor]:
    """The same in a process that has never heard of this package."""
    target, tokens = str(backbone.parent / "logits.safetensors"), ",".join(map(str, TOKENS))
    words = [sys.executable, "-c", PLAIN_PEFT, str(backbone), target, tokens, *folders]
    subprocess.run(words, check=True, capture_output=True)
    return load_file(target)


@pytest.mark.parametrize("answered", [here, pytest.param(elsewhere, marks=pytest.mark.slow)])
def test_plain_peft_gives_the_same_logits(
    answered: Callable[..., dict[str, torch.Tensor]], folders: dict[str, Path], place: Path, tmp_path: Path
) -> None:
    loras: dict[str, torch.Tensor] = {}
    for name in ("weights", "some"):
        output = tmp_path / name
        assert export(folders[name], output) == 0
        assert {path.name for path in output.iterdir()} == set(TASKS)
        for task in TASKS:
            assert read_json(output / task / "adapter_config.json")["peft_type"] == "LORA"
        model = load_adapter(folders[name], dtype="float32").model
        for task in TASKS:
            model.set_task(task)
            with torch.no_grad():
                loras[str(output / task)] = model(input_ids=torch.tensor([TOKENS])).logits
                with model.disable_adapter():
                    base = model(input_ids=torch.tensor([TOKENS])).logits
            assert (loras[str(output / task)] - base).abs().max() > 1e-3
    found = answered(place / "backbone", list(loras))
    for folder, expected in loras.items():
        torch.testing.assert_close(found[folder], expected, rtol=0, atol=1e-5)


def test_a_folder_says_what_it_is_and_nothing_of_this_machine(
    folders: dict[str, Path], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_release(load_adapter(folders["some"]).model, tmp_path / "release")
    words = ["--task", "echo", "--backbone", str(place / "backbone")]
    assert export(tmp_path / "release", tmp_path / "lora", *words) == 0
    (folder,) = (tmp_path / "lora").iterdir()
    assert capsys.readouterr().out == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not any(str(place).encode() in path.read_bytes() for path in folder.iterdir())
    config = read_json(folder / "adapter_config.json")
    assert (config["peft_type"], config["r"]) == ("LORA", 2)
    assert config["base_model_name_or_path"] == "backbone"
    modules = [f"model.layers.1.self_attn.{name}_proj" for name in ("o", "q")]
    assert sorted(config["target_modules"]) == modules


def test_a_name_that_is_no_folders_is_quoted(tiny_model: Any, place: Path, tmp_path: Path) -> None:
    model = learn(tiny_model(), ("a/b", "..", "v1.5"), placement="weights", target_modules=["q_proj"])
    model.save_pretrained(tmp_path / "adapter")
    assert export(tmp_path / "adapter", tmp_path / "lora", "--backbone", str(place / "backbone")) == 0
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"a%2Fb", "%2E%2E", "v1.5"}


def test_mistakes_are_told_in_one_line(
    folders: dict[str, Path], place: Path, tmp_path: Path, tiny_model: Any, capsys: pytest.CaptureFixture
) -> None:
    def refused(folder: Path, *words: str) -> str:
        capsys.readouterr()
        assert export(folder, tmp_path / "new", "--backbone", str(place / "backbone"), *words) == 2
        assert not (tmp_path / "new").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "unknown task 'ecko'; did you mean 'echo'?" in refused(folders["weights"], "--task", "ecko")
    assert "--opset says nothing to --format lora" in refused(folders["weights"], "--opset", "18")
    assert "has placement='residual_stream': --format lora exports 'weights'" in refused(folders["stream"])
    others = {
        "is of method LORA: only one of HIMALAYA is exported": LoraConfig(target_modules=["q_proj"]),
        "is of method GLODIS: only one of HIMALAYA is exported": GlodisConfig(task_type="CAUSAL_LM"),
        "is of method HIMALAYA_STRICT: only one of HIMALAYA is exported": HimalayaStrictConfig(task_type="CAUSAL_LM"),
    }
    for number, (message, config) in enumerate(others.items()):
        get_peft_model(tiny_model(), config).save_pretrained(tmp_path / str(number))
        assert message in refused(tmp_path / str(number))
    head = learn(tiny_model(), ("one",), placement="weights", modules_to_save=["lm_head"])
    head.save_pretrained(tmp_path / "head")
    assert "has trained lm_head whole, which no export holds" in refused(tmp_path / "head")
    half = learn(tiny_model(), placement="weights", target_modules=["q_proj"])
    half.start_task("echo")
    half.save_pretrained(tmp_path / "half")
    assert "was saved while a task was learnt: call model.end_task()" in refused(tmp_path / "half")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert export(folders["weights"], tmp_path / "full") == 2
    assert "full is not an empty folder" in capsys.readouterr().err
