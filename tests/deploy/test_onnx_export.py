"""`himalaya export --format onnx`: its graphs answer as PyTorch does, and hold nothing else."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from learnt import learn, write_learnt
from onnxruntime import InferenceSession
from peft import LoraConfig, get_peft_model
from tiny_runs import TASKS
from transformers import AutoModelForCausalLM, GPT2Config, LlamaForCausalLM, MistralConfig, PretrainedConfig

from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.deploy.bundle.runner.graph import open_session
from himalaya_adapter.deploy.onnx.decoder_graph import decoder_graph
from himalaya_adapter.deploy.onnx.parity import TOLERANCE, check_parity
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig
from himalaya_adapter.methods.release import save_release
from himalaya_adapter.storage import read_json

FILES = {
    *("adapter.onnx", "adapter_function_free.onnx", "parity.json"),
    *("model.onnx", "model_base.onnx", "model_function_free.onnx", "model_weights.bin"),
}
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    return write_learnt(place / "learnt", place / "backbone")


@pytest.fixture(scope="module")
def exported(folder: Path, place: Path) -> Path:
    assert main(["export", str(folder), "--format", "onnx", "--output", str(place / "onnx")]) == 0
    return place / "onnx"


def greedy(session: InferenceSession, prompts: Sequence[Sequence[int]], padding: int, tasks: Sequence[int]) -> list:
    """Greedy answers of a batch of prompts, padded on the left; ``tasks`` has one number per row."""
    length = max(len(prompt) for prompt in prompts)
    tokens = np.array([[padding] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = np.array([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    taken = {entry.name: entry for entry in session.get_inputs()}
    caches = [name for name in taken if name.startswith("past_key_values.")]
    past = {
        name: np.zeros((len(prompts), taken[name].shape[1], 0, taken[name].shape[3]), np.float32) for name in caches
    }
    answers: list[np.ndarray] = []
    for _ in range(NEW_TOKENS):
        task = {"task": np.array(tasks)} if "task" in taken else {}
        logits, *present = session.run(None, {"input_ids": tokens, "attention_mask": mask, **task, **past})
        past = dict(zip(caches, present, strict=True))
        tokens = logits[:, -1].argmax(-1)[:, None]
        mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
        answers.append(tokens)
    return np.concatenate(answers, axis=1).tolist()


def generated(model: torch.nn.Module, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(prompt)])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    return answer[0, ids.shape[1] :].tolist()


def test_greedy_text_is_that_of_pytorch(folder: Path, exported: Path) -> None:
    """A task for each row of a batch, token by token with a cache."""
    adapter = load_adapter(folder, dtype="float32")
    texts = ["Is 12 even?\nAnswer:", "Repeat 7:", "Text: the green dog 4 was on the sofa\nColour:"]
    prompts = [adapter.tokenizer(text).input_ids for text in texts]
    padding = adapter.tokenizer.pad_token_id
    adapter.model.generation_config.eos_token_id = None
    expected = []
    for prompt, task in zip(prompts, TASKS, strict=True):
        adapter.model.set_task(task)
        expected.append(generated(adapter.model, prompt))
    for name in ("model.onnx", "model_function_free.onnx"):
        session = open_session(exported / name, threads=1)
        assert greedy(session, prompts, padding, range(3)) == expected
        assert greedy(session, prompts[1:2], padding, [1]) == expected[1:2]
    with adapter.model.disable_adapter():
        expected = [generated(adapter.model, prompt) for prompt in prompts]
    assert greedy(open_session(exported / "model_base.onnx", threads=1), prompts, padding, ()) == expected


def test_the_folder_is_complete_and_every_output_is_compared(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    parity = read_json(exported / "parity.json")
    assert parity.keys() == {name for name in FILES if name.endswith(".onnx")}
    for name, outputs in parity.items():
        assert list(outputs) == [entry.name for entry in open_session(exported / name).get_outputs()]
        assert all(entry["relative"] <= TOLERANCE and entry["largest"] > 0 for entry in outputs.values())


def shapes(exported: Path, name: str) -> list[str]:
    """The names of the free dimensions of a graph's inputs."""
    inputs = open_session(exported / name).get_inputs()
    return [dimension for entry in inputs for dimension in entry.shape if isinstance(dimension, str)]


def test_graphs_say_what_they_are_and_nothing_about_this_machine(exported: Path, place: Path) -> None:
    for path in exported.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path))
        content = path.read_bytes()
        assert str(place).encode() not in content
        assert b".py" not in content
        assert b"site-packages" not in content
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["himalaya.backbone"] == "backbone"
        assert ("himalaya.tasks" in metadata) == ("base" not in path.name)
        assert set(shapes(exported, path.name)) <= {"batch", "sequence", "past", "past + sequence"}
        domains = {entry.domain for entry in model.opset_import}
        if "base" in path.name or "function_free" in path.name:
            assert domains == {""}
            assert not model.functions
        else:
            assert json.loads(metadata["himalaya.tasks"]) == list(TASKS)
            assert domains == {"", "ai.himalaya"}
        assert model.ir_version == 8


def test_layers_of_the_base_graph_share_the_weights_file(exported: Path) -> None:
    large = {}
    for name in ("model.onnx", "model_base.onnx"):
        tensors = onnx.load(exported / name, load_external_data=False).graph.initializer
        outside = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
        large[name] = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in outside}
    assert large["model_base.onnx"].items() <= large["model.onnx"].items()
    assert {entry["location"] for entry in large["model_base.onnx"].values()} == {"model_weights.bin"}


def test_some_tasks_only_at_another_opset_from_a_release(folder: Path, place: Path, tmp_path: Path) -> None:
    save_release(load_adapter(folder).model, tmp_path / "mine")
    words = ["export", str(tmp_path / "mine"), "--backbone", str(place / "backbone"), "--format", "onnx"]
    words += ["--output", str(tmp_path / "out"), "--graph", "adapter", "--opset", "21"]
    assert main([*words, "--task", "echo", "--task", "parity"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {name for name in FILES if name[0] in "ap"}
    model = onnx.load(tmp_path / "out" / "adapter.onnx")
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 21
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["himalaya.tasks"]) == ["echo", "parity"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--opset", "17"], "'--opset': Input should be greater than or equal to 18"),
        (["--opset", "99"], "'--opset': Input should be less than or equal to 23"),
        (["--task", "ecko"], "unknown task 'ecko'; did you mean 'echo'?"),
    ],
)
def test_bad_words(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], message: str
) -> None:
    assert main(["export", str(folder), "--format", "onnx", "--output", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["export", str(folder), "--format", "onnx", "--output", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_has_no_operator_names_the_way_out(
    place: Path, tmp_path: Path, tiny_model: Callable[..., LlamaForCausalLM], capsys: pytest.CaptureFixture
) -> None:
    strict = get_peft_model(tiny_model(), HimalayaStrictConfig(task_type="CAUSAL_LM"))
    lora = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    weights = learn(tiny_model(), placement="weights", target_modules=["q_proj"])
    messages = {
        strict: "is of method HIMALAYA_STRICT: only one of HIMALAYA is exported",
        lora: "is of method LORA: only one of HIMALAYA is exported; merge_and_unload() merges",
        weights: "has placement='weights': --format lora exports 'weights'",
    }
    for number, (model, message) in enumerate(messages.items()):
        model.save_pretrained(tmp_path / str(number))
        words = [str(tmp_path / str(number)), "--backbone", str(place / "backbone")]
        assert main(["export", *words, "--format", "onnx", "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
        assert main(["latency", *words]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MistralConfig(sliding_window=128), "a mistral with attention windows cannot be exported"),
        (GPT2Config(), "a gpt2 cannot be exported: its cache is not"),
    ],
)
def test_another_attention_is_refused(config: PretrainedConfig, message: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(HimalayaError, match=message):
        decoder_graph(model, [], {})


@pytest.mark.slow
def test_what_pytorch_cannot_export_is_one_line(tiny_model: Callable[..., LlamaForCausalLM]) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}  # other frequencies for longer prompts
    with pytest.raises(HimalayaError, match=r"^this llama cannot be exported: Could not guard on data-dependent.*$"):
        decoder_graph(learn(tiny_model(rope_parameters=rope)), TASKS, {})


def test_an_export_that_fails_without_a_word_is_one_line(tiny_model: Callable[..., LlamaForCausalLM]) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    model = learn(tiny_model())
    model.get_base_model().lm_head.register_forward_pre_hook(fail)
    with pytest.raises(HimalayaError, match=r"^this llama cannot be exported: AssertionError$"):
        decoder_graph(model, TASKS, {})


def test_a_graph_that_differs_is_not_written() -> None:
    good, bad = {"relative": 1e-7}, {"relative": 2e-3}
    with pytest.raises(HimalayaError, match=r"graph 'model.onnx': output 'logits' differs from PyTorch's by 2.0e-03"):
        check_parity({"model.onnx": {"present.0.key": good, "logits": bad}})
