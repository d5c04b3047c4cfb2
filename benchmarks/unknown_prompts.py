"""Does a prompt of a kind that was never learnt fall back to the frozen model, and a learnt task's own prompt not?

Some tasks of package_stream_25 are learnt from their prompts, the others are foreign. The templates are each task's
own; one for every five tasks; or one for all (``Text: …\nAnswer:``), where only the wording of the contents is left.
The limit of the memory of prompts was chosen on the validation items; the test items are what is reported.

Run: python benchmarks/unknown_prompts.py   (writes benchmarks/results/unknown_prompts.json)
"""

import copy
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
LEARNT, PROMPTS = (2, 6, 12, 25), (10, 400)  # of 25 tasks: with all learnt no prompt is foreign
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
                rows.append(row | shares(found, learnt, prompts))
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


def shares(found: Sequence[dict[str, Tensor]], learnt: int, prompts: int) -> dict[str, Any]:
    """Of learnt tasks' prompts those that do not fall back, and that find their task; of others those that do.

    Beside it, what a limit of this cell's own would do: one that keeps 95 % of the learnt tasks' validation prompts.
    """
    generator = torch.Generator().manual_seed(0)
    own: dict[str, list[Tensor]] = {"validation": [], "test": []}
    right, foreign = copy.deepcopy(own), copy.deepcopy(own)
    for _ in range(CHOICES):
        order = torch.randperm(len(found), generator=generator).tolist()
        memory = PromptMemory(1, CODE, slots=len(found))
        for task in order[:learnt]:
            train = found[task]["train"]
            chosen = train[torch.randperm(len(train), generator=generator)[:prompts]]
            memory.observe(chosen.T @ chosen)
            memory.learn(code_of(task))
        for task in range(len(found)):
            for split in own:
                codes, confidences = memory.infer(found[task][split])
                distances = distances_of(memory, found[task][split])
                assert torch.equal(confidences == 1, distances <= TYPICAL)
                if task in order[:learnt]:
                    own[split].append(distances)
                    right[split].append((confidences == 1) & ((codes > 0) == (code_of(task) > 0)).all(1))
                else:
                    foreign[split].append(distances)
    limit = torch.cat(own["validation"]).quantile(0.95)
    return {
        split: {
            "own_kept": share(torch.cat(own[split]) <= TYPICAL),
            "own_right": share(torch.cat(right[split])),
            **({"foreign_fall_back": share(torch.cat(foreign[split]) > TYPICAL)} if foreign[split] else {}),
            **({"foreign_fall_back_at_best": share(torch.cat(foreign[split]) > limit)} if foreign[split] else {}),
        }
        for split in own
    } | {"limit_at_best": round(limit.item(), 3)}


def distances_of(memory: PromptMemory, features: Tensor) -> Tensor:
    """The mean squared distance to the nearest task, by the dense formula, ``(n,)``."""
    width = features.shape[1]
    within = memory.covariance.double() / memory.closed + RIDGE * torch.eye(width)
    gaps = features.double()[:, None] - memory.means[: int(memory.tasks)].double()
    return torch.einsum("btq,qr,btr->bt", gaps, torch.linalg.inv(within), gaps).div(width).amin(1)


def share(which: Tensor) -> float:
    return round(which.float().mean().item(), 4)


def code_of(task: int) -> Tensor:
    return ((task >> torch.arange(CODE)) & 1) * 2.0 - 1.0


if __name__ == "__main__":
    main()
