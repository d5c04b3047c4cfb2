"""With one callback a Trainer learns task after task and forgets none; without it, training is refused."""

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from callback_process import ITEMS, SETTINGS, answers, attached, learn_three_tasks, padded, rows
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_runs import TIMEOUT, in_two_processes
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from himalaya_adapter import TaskCallback
from himalaya_adapter.errors import HimalayaError

WORKER = Path(__file__).with_name("callback_process.py")


@pytest.fixture
def trainer(tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Trainer]:
    """A Trainer of one task: ``trainer(model, task, callbacks=..., kind=..., **settings)``."""

    def make(model: Any, task: str, kind: str = "plain", callbacks: Any = None, **changes: Any) -> Trainer:
        given = {
            "model": model,
            "processing_class": tiny_tokenizer,
            "callbacks": [TaskCallback(task)] if callbacks is None else callbacks,
        }
        settings = {**SETTINGS, "output_dir": str(tmp_path / task), **changes}
        if kind == "plain":
            return Trainer(
                **given,
                args=TrainingArguments(**settings),
                train_dataset=rows(tiny_tokenizer, task),
                eval_dataset=rows(tiny_tokenizer, task),
                data_collator=padded(tiny_tokenizer.pad_token_id),
            )
        packing = {"sft": {}, "packed": {"packing": True}, "padding-free": {"padding_free": True, "max_length": None}}
        settings = {"max_length": 32, **settings, **packing[kind]}
        return SFTTrainer(**given, args=SFTConfig(**settings), train_dataset=Dataset.from_list(ITEMS[task]))

    return make


@pytest.mark.parametrize("kind", ["plain", "sft", "padding-free", "packed"])
def test_three_tasks_one_after_another(
    kind: str, trainer: Callable[..., Trainer], tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    model = attached(tiny_model)
    learnt = {}
    for task in ITEMS:
        before = answers(model, tiny_tokenizer, task) if task in model.tasks else None
        assert before is None
        trainer(model, task, kind).train()
        learnt[task] = answers(model, tiny_tokenizer, task)
        assert model.open_task is None
    assert model.tasks == list(ITEMS)
    for task, logits in learnt.items():
        assert torch.equal(answers(model, tiny_tokenizer, task), logits), task
        with model.disable_adapter():
            assert (answers(model, tiny_tokenizer, task) - logits).abs().max() > 1e-3, "it did learn"
        asked = [torch.tensor([tiny_tokenizer(one["prompt"])["input_ids"]]) for one in ITEMS[task]]
        assert [model.infer_task(one)[0][0] for one in asked] == [task] * len(asked)


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_without_the_callback_a_second_data_set_is_refused(
    kind: str, trainer: Callable[..., Trainer], tiny_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = attached(tiny_model)
    with caplog.at_level(logging.WARNING, logger="himalaya_adapter"):
        trainer(model, "code", kind, callbacks=[]).train()
    (record,) = [one for one in caplog.records if one.name.startswith("himalaya_adapter")]
    assert "outside of a task" in record.getMessage()
    trainer(model, "colours", kind).train()
    assert model.tasks == ["unnamed", "colours"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        HimalayaError, match=r"^no task is being learnt: .* `with model\.learning\(name\):`, or give a "
    ):
        trainer(model, "moods", kind, callbacks=[]).train()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_prompts_count_once_where_a_training_is_resumed_in_its_second_epoch(
    trainer: Callable[..., Trainer], tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 1}
    whole, model = attached(tiny_model), attached(tiny_model)
    done = trainer(whole, "code", **settings, output_dir=str(tmp_path / "whole"))
    done.train()
    assert done.state.global_step == 8, "four steps an epoch"
    with pytest.raises(KeyboardInterrupt):
        trainer(model, "code", callbacks=[TaskCallback("code"), Stop(6)], **settings).train()
    fresh = attached(tiny_model)
    trainer(fresh, "code", **settings).train(resume_from_checkpoint=True)
    state = fresh.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.state_dict().items())


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(
    trainer: Callable[..., Trainer], tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole, model = attached(tiny_model), attached(tiny_model)
    for one in (whole, model):
        trainer(one, "colours").train()
    trainer(whole, "code", **saving, output_dir=str(tmp_path / "whole")).train()
    with pytest.raises(KeyboardInterrupt):
        trainer(model, "code", callbacks=[TaskCallback("code"), Stop(2)], **saving).train()
    with pytest.raises(HimalayaError, match=r"^task 'code' is being learnt: before task 'moods' begins, model\.end_"):
        trainer(model, "moods").train()
    model.forget_task("code")
    assert model.tasks == ["colours"]
    trainer(model, "code", **saving).train(resume_from_checkpoint=True)
    assert model.tasks == whole.tasks == ["colours", "code"]
    for task in model.tasks:
        assert torch.equal(answers(model, tiny_tokenizer, task), answers(whole, tiny_tokenizer, task))
    # Checkpoints of another task, or from before a task was learnt.
    trainer(model, "moods").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(HimalayaError, match="task 'moods', which this adapter has learnt, is not in the file as"):
        trainer(model, "code").train(resume_from_checkpoint=True)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    fresh = attached(tiny_model)
    with pytest.raises(HimalayaError, match="the checkpoint was written while the adapter learnt code, not 'moods'"):
        trainer(fresh, "moods", output_dir=str(tmp_path / "code")).train(resume_from_checkpoint=True)


def test_preferences_are_compared_with_what_the_task_had_learnt(
    trainer: Callable[..., Trainer], tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = attached(tiny_model)
    trainer(model, "colours", learning_rate=0.1).train()
    rows = [{"prompt": one["prompt"], "chosen": " maybe", "rejected": " so"} for one in ITEMS["colours"]]
    settings = {**SETTINGS, "output_dir": str(tmp_path / "dpo"), "learning_rate": 0.0}
    preferences = DPOTrainer(
        model=model,
        args=DPOConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
        callbacks=[TaskCallback("colours")],
    )
    preferences.train()
    losses = [entry["loss"] for entry in preferences.state.log_history if "loss" in entry]
    assert losses == pytest.approx([math.log(2)] * len(losses), abs=1e-4)


def test_the_best_checkpoint_is_what_is_stored(
    trainer: Callable[..., Trainer], tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = attached(tiny_model)
    trainer(model, "colours").train()
    colours = answers(model, tiny_tokenizer, "colours")
    best = trainer(
        model,
        "code",
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        greater_is_better=True,  # the largest loss is "best", so it is not the last step, on any machine
        max_steps=4,
    )
    best.train()
    assert 0 < best.state.best_global_step < 4
    loaded = PeftModel.from_pretrained(tiny_model(), best.state.best_model_checkpoint, is_trainable=True)
    assert loaded.open_task == "code"
    loaded.end_task()
    assert model.task_hash("code") == loaded.task_hash("code")
    assert torch.equal(answers(model, tiny_tokenizer, "colours"), colours)
    trainer(model, "moods").train()  # the adapter can still be trained
    assert model.tasks == ["colours", "code", "moods"]


def test_a_known_task_is_learnt_further(
    trainer: Callable[..., Trainer], tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    model = attached(tiny_model)
    trainer(model, "colours").train()
    trainer(model, "code").train()
    colours, first = (answers(model, tiny_tokenizer, task) for task in ("colours", "code"))
    trainer(model, "code").train()
    assert not torch.equal(answers(model, tiny_tokenizer, "code"), first)
    assert torch.equal(answers(model, tiny_tokenizer, "colours"), colours)
    assert model.tasks == ["colours", "code"]


@pytest.mark.parametrize("adapter", [None, LoraConfig(task_type="CAUSAL_LM")])
def test_a_model_without_tasks_is_refused(
    adapter: LoraConfig | None, trainer: Callable[..., Trainer], tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model() if adapter is None else get_peft_model(tiny_model(), adapter)
    with pytest.raises(HimalayaError, match=r"^TaskCallback\('code'\) needs a model with an adapter of HIMALAYA, as "):
        trainer(model, "code").train()


def launched_by_accelerate(folder: Path) -> None:
    # Of its launchers the one that starts several processes on one machine; the script itself asks for CPUs.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, *plain, str(WORKER), str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert process.returncode == 0, process.stderr


def forked(folder: Path) -> None:
    """As accelerate starts them, off a server that has imported what they need."""
    statuses = in_two_processes(folder, learn_three_tasks, folder)
    assert statuses == [0, 0], [(folder / f"{rank}.err").read_text() for rank in range(2)]


@pytest.mark.parametrize("start", [forked, pytest.param(launched_by_accelerate, marks=pytest.mark.slow)])
def test_two_processes_hold_the_same_adapter(start: Callable[[Path], None], tmp_path: Path) -> None:
    start(tmp_path)
    ranks = [load_file(tmp_path / f"rank_{rank}.safetensors") for rank in range(2)]
    for name, tensor in ranks[0].items():
        assert torch.equal(tensor, ranks[1][name]), f"{name} is the same on both processes"
    said = [json.loads((tmp_path / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert said[0] == said[1]
    assert said[0]["tasks"] == list(ITEMS)
    assert said[0]["unchanged"] == dict.fromkeys(ITEMS, True)
    # There are four prompts of each task. A process counts those that it has seen, and the other one its own.
    assert all(4 <= count <= 8 for count in said[0]["prompts"])


def test_a_step_that_a_gradient_scaler_skips_is_left_to_it(tiny_model: Callable[..., Any]) -> None:
    """As with ``fp16=True, max_grad_norm=0``, where nobody has looked at the gradients before."""
    Accelerator(cpu=True)  # its optimizer asks for the state that this makes
    model, callback = attached(tiny_model), TaskCallback("a")
    model.train().start_task("a")
    (atoms,) = [one for one in model.parameters() if one.requires_grad]
    scaler = torch.amp.GradScaler("cpu")
    optimizer = AcceleratedOptimizer(torch.optim.AdamW([atoms], lr=0.1), device_placement=False, scaler=scaler)
    state, before = TrainerState(), atoms.detach().clone()
    callback.on_train_begin(None, state, None, model=model, optimizer=optimizer)
    scaler.scale((atoms * torch.inf).sum()).backward()
    callback.on_pre_optimizer_step(None, state, None, optimizer=optimizer)
    optimizer.step()
    assert optimizer.step_was_skipped
    assert torch.equal(atoms, before)
    assert [event["event"] for event in state.log_history] == ["skipped_step"]
