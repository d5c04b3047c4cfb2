"""``python callback_process.py FOLDER``: one process of a training of three tasks under ``accelerate launch``."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from test_task_callback import ITEMS, SETTINGS, answers, attached, padded, rows
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from himalaya_adapter import TaskCallback
from himalaya_adapter.methods.prompt_memory import PromptMemory


class Bytes:
    """A tokenizer."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [2 + one for one in text.encode()]}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=258, pad_token_id=0, bos_token_id=None, eos_token_id=1, **sizes))


def main(folder: Path) -> None:
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
    main(Path(sys.argv[1]))
