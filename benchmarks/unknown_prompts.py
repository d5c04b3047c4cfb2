"""Does a prompt of a kind that was never learnt fall back to the frozen model, and a learnt task's own prompt not?

Some tasks of package_stream_25 are learnt from their prompts, the others are foreign. The templates are each task's
own; one for every five tasks; or one for all (``Text: …\nAnswer:``), where nothing but the wording of the contents is left.
The limit of the memory of prompts was chosen on the validation items; the test items are what is reported.

Run: python benchmarks/unknown_prompts.py   (writes benchmarks/results/unknown_prompts.json)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.methods.prompt_memory import RIDGE, TYPICAL, PromptMemory
from himalaya_adapter.storage import write_json
from himalaya_adapter.streams import Limits, Task, load_stream

RESULTS = Path(__file__).with_name("results") / "unknown_prompts.json"
STREAM, BACKBONE = "package_stream_25", "smollm2-135m"
TRAIN, SCORED = 400, 200
LEARNT, PROMPTS = (2, 6, 12), (10, 400)
CODE = 5  # signs that number 25 tasks
CHOICES = 8  # of the tasks that are learnt, from a seed
SHARED = ("Text: {}\nAnswer:", "Input: {}\nOutput:", "Question: {}\nReply:", "### {}\n->", "Item: {}\nResult:")
TEMPLATES: dict[str, Callable[[Task, int], str | None]] = {
    "own": lambda task, number: None,
    "five tasks share one": lambda task, number: SHARED[number % len(SHARED)],
    "all tasks share one": lambda task, number: SHARED[0],
}


def main() -> None:
    torch.set_num_threads(1)
    stream = load_stream(STREAM, limits=Limits(TRAIN, SCORED, SCORED))
    backbone = load_backbone(BACKBONE)
    rows = []
    for kind, template in TEMPLATES.items():
        found = [features(task, template(task, number), backbone) for number, task in enumerate(stream.tasks)]
        for learnt in LEARNT:
            for prompts in PROMPTS:
                row = {"templates": kind, "learnt": learnt, "prompts": prompts}
                rows.append(row | {split: shares(found, learnt, prompts, split) for split in ("validation", "test")})
                print(rows[-1], flush=True)
    about = {"stream": STREAM, "backbone": BACKBONE, "choices": CHOICES, "ridge": RIDGE, "limit": TYPICAL}
    write_json(RESULTS, about | {"rows": rows})


def features(task: Task, template: str | None, backbone: Any) -> dict[str, Tensor]:
    """The features of a task's prompts by split, ``(n, q)``."""
    before, after = task.spec.template.partition("{")[0], task.spec.template.rpartition("}")[2]
    memory, embeddings = PromptMemory(backbone.model.config.hidden_size, CODE), backbone.model.get_input_embeddings()
    found = {}
    for split in ("train", "validation", "test"):
        texts = [item.prompt for item in task.split(split)]
        if template is not None:
            texts = [template.format(text.removeprefix(before).removesuffix(after)) for text in texts]
        ids = [torch.tensor([backbone.tokenizer(text)["input_ids"]]) for text in texts]
        found[split] = torch.cat([memory.features(embeddings(one), torch.ones_like(one)).detach() for one in ids])
    return found


def shares(found: Sequence[dict[str, Tensor]], learnt: int, prompts: int, split: str) -> dict[str, float]:
    """Of learnt tasks' prompts those that do not fall back, and that find their task; of others those that do."""
    generator = torch.Generator().manual_seed(0)
    kept, right, foreign = [], [], []
    for _ in range(CHOICES):
        order = torch.randperm(len(found), generator=generator).tolist()
        memory = PromptMemory(1, CODE, slots=len(found))
        for task in order[:learnt]:
            train = found[task]["train"]
            chosen = train[torch.randperm(len(train), generator=generator)[:prompts]]
            memory.observe(chosen.T @ chosen)
            memory.learn(code_of(task))
        for task in range(len(found)):
            codes, confidences = memory.infer(found[task][split])
            known = confidences == 1
            if task in order[:learnt]:
                kept.append(known)
                right.append(known & ((codes > 0) == (code_of(task) > 0)).all(1))
            else:
                foreign.append(~known)
    return {
        name: round(torch.cat(values).float().mean().item(), 4)
        for name, values in (("own_kept", kept), ("own_right", right), ("foreign_fall_back", foreign))
    }


def code_of(task: int) -> Tensor:
    return ((task >> torch.arange(CODE)) & 1) * 2.0 - 1.0


if __name__ == "__main__":
    main()
