"""How much faster a task is scored than by one `generate` call an item, as ratios measured in one process.

Both score the same test items of the demo's tasks with the same model; the naive way generates every answer, also that
of a classification, up to the task's longest answer or the end of the line. They take turns, so that other load hits
both alike.

Run: python benchmarks/evaluation.py [--items 24] [--rounds 3]
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.evaluation.generation import stop_tokens
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.storage import write_json
from himalaya_adapter.streams import Limits, Task, load_stream
from himalaya_adapter.streams.encoding import encode_prompt
from himalaya_adapter.training.environment import processor_name

RESULT = Path(__file__).parent / "results" / "evaluation.json"
MAX_LENGTH = 128
BATCH_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    backbone = load_backbone("smollm2-135m")
    model = get_peft_model(backbone.model, HimalayaConfig(task_type="CAUSAL_LM")).eval()
    stream = load_stream("demo_stream_6", limits=Limits(train=4, validation=None, test=chosen.items))
    rows = []
    for task in stream.tasks:
        model.start_task(task.name)
        model.eval()
        ratios = []
        for _ in range(chosen.rounds):
            started = time.perf_counter()
            evaluate_task(model, backbone.tokenizer, task, batch_size=BATCH_SIZE, max_length=MAX_LENGTH)
            scored = time.perf_counter()
            one_call_an_item(model, backbone.tokenizer, task)
            ratios.append((time.perf_counter() - scored) / (scored - started))
        rows.append({"task": task.name, "kind": task.spec.kind, "items": len(task.test), "ratios": ratios})
        print(f"{task.name:24s} {statistics.median(ratios):6.2f} x  ({min(ratios):.2f}-{max(ratios):.2f})")
    environment = {"torch": torch.__version__, "cpu": processor_name(), "threads": torch.get_num_threads()}
    write_json(RESULT, {"environment": environment, "batch_size": BATCH_SIZE, "tasks": rows})


@torch.no_grad()
def one_call_an_item(model: Any, tokenizer: Any, task: Task) -> None:
    stop = sorted(stop_tokens(tokenizer, task.answers_are_lines))
    longest = max(len(tokenizer(label)["input_ids"]) for label in task.spec.labels or [""])
    for item in task.test:
        prompt = encode_prompt(tokenizer, item.prompt, MAX_LENGTH)
        model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=task.spec.max_new_tokens or longest,
            eos_token_id=stop,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
        )


if __name__ == "__main__":
    main()
