"""``python callback_process.py FOLDER``: one process of a training of three tasks under ``accelerate launch``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from himalaya_adapter import HimalayaConfig, TaskCallback
from himalaya_adapter.methods.task_inference.prompt_memory import PromptMemory

ITEMS = {
    "colours": [
        {"prompt": f"Text: {thing}\nAnswer:", "completion": f" {colour}"}
        for thing, colour in [("the sky", "blue"), ("the dog", "brown"), ("the cat", "black"), ("the wall", "white")]
        * 2
    ],
    "moods": [
        {"prompt": f"Is it {word}?\nMood:", "completion": f" {mood}"}
        for word, mood in [("good", "positive"), ("bad", "negative"), ("so", "neutral"), ("blue", "negative")] * 2
    ],
    "code": [{"prompt": f"def {name}(x", "completion": f"):\n    return {name}"} for name in "abcd" * 2],
}
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.01,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "bf16": False,
    "logging_steps": 1,
}


def attached(tiny_model: Callable[..., Any]) -> PeftModel:
    config = HimalayaConfig(task_type="CAUSAL_LM", atoms_per_task=3, elastic_atoms=24)
    return get_peft_model(tiny_model(), config)


def rows(tokenizer: Any, task: str) -> list[dict[str, list[int]]]:
    found = []
    for item in ITEMS[task]:
        prompt = tokenizer(item["prompt"])["input_ids"]
        answer = tokenizer(item["completion"])["input_ids"]
        found.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return found


def padded(padding: int) -> Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]:
    def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(one["input_ids"]) for one in examples)

        def column(key: str, filler: int) -> torch.Tensor:
            return torch.tensor([one[key] + [filler] * (longest - len(one[key])) for one in examples])

        ids = column("input_ids", padding)
        return {"input_ids": ids, "labels": column("labels", -100), "attention_mask": (ids != padding).long()}

    return collate


def answers(model: PeftModel, tokenizer: Any, task: str) -> torch.Tensor:
    model.set_task(task)
    model.eval()
    with torch.no_grad():
        return torch.cat(
            [model(input_ids=torch.tensor([tokenizer(one["prompt"])["input_ids"]])).logits[0] for one in ITEMS[task]]
        )


class Bytes:
    """A tokenizer."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [2 + one for one in text.encode()]}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=258, pad_token_id=0, bos_token_id=None, eos_token_id=1, **sizes))


def learn_three_tasks(folder: Path) -> None:
    adapted, tokenizer, rank = attached(model), Bytes(), PartialState(cpu=True).process_index
    memory = next(one for one in adapted.modules() if isinstance(one, PromptMemory))
    seen: list[float] = []
    learn, learnt = memory.learn, {}

    def watched(*arguments: Any) -> None:
        seen.append(memory.task_moment[-1, -1].item())
        learn(*arguments)

    memory.learn = watched
    for task in ITEMS:
        trainer = Trainer(
            model=adapted,
            args=TrainingArguments(**{**SETTINGS, "output_dir": str(folder / task)}),
            train_dataset=rows(tokenizer, task),
            data_collator=padded(0),
            callbacks=[TaskCallback(task)],
        )
        trainer.train()
        learnt[task] = answers(adapted, tokenizer, task)
    unchanged = {task: torch.equal(answers(adapted, tokenizer, task), logits) for task, logits in learnt.items()}
    said = {"tasks": adapted.tasks, "unchanged": unchanged, "prompts": seen}
    (folder / f"rank_{rank}.json").write_text(json.dumps(said), encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(adapted).items()}
    save_file(tensors, folder / f"rank_{rank}.safetensors")


if __name__ == "__main__":
    learn_three_tasks(Path(sys.argv[1]))
