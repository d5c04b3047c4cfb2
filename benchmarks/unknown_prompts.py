"""Does a prompt of a kind that was never learnt fall back to the frozen model, and a learnt task's own prompt not?

Some tasks of package_stream_25 are learnt from their prompts, the others are foreign. The templates are each task's
own; one for every five tasks; or one for all (``Text: …\nAnswer:``), where only the wording of the contents is left.
The limit of the memory of prompts was chosen on the validation items; the test items are what is reported.

Run: python benchmarks/unknown_prompts.py   (writes benchmarks/results/unknown_prompts.json; features of prompts are
kept in outputs/unknown_prompts/, so that a second run only compares them)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.methods.task_inference.frozen import middle_states
from himalaya_adapter.methods.task_inference.gaussians import ENOUGH, LIMIT, GaussianMemory
from himalaya_adapter.storage import write_json
from himalaya_adapter.streams import Limits, Task, load_stream
from himalaya_adapter.streams.catalogue import read_definition

RESULTS = Path(__file__).with_name("results") / "unknown_prompts.json"
KEPT = Path("outputs/unknown_prompts")
STREAM, BACKBONE = "package_stream_25", "smollm2-135m"
SCORED, TOKENS, BATCH = 60, 192, 16
LEARNT, PROMPTS = (1, 2, 6, 12, 25), (10, 30, ENOUGH)  # of 25 tasks: with all learnt no prompt is foreign
CHOICES = 8  # of the tasks that are learnt, from a seed
SHARED = ("Text: {}\nAnswer:", "Input: {}\nOutput:", "Question: {}\nReply:", "### {}\n->", "Item: {}\nResult:")
TEMPLATES: dict[str, Callable[[int], str | None]] = {
    "own": lambda number: None,
    "five tasks share one": lambda number: SHARED[number % len(SHARED)],
    "all tasks share one": lambda number: SHARED[0],
}
SPLITS = ("train", "validation", "test")
# Tasks whose contents are of one kind: texts of interfaces in English, texts of one manual.
KIN = ({"interface_german", "interface_swahili", "interface_finnish"}, {"cloud_command", "example_title"})
Found = list[dict[str, Tensor]]  # of each task, by split, features (n, q)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for kind in TEMPLATES:
        found = kept(kind)
        for learnt in LEARNT:
            for prompts in PROMPTS:
                row = {"templates": kind, "learnt": learnt, "prompts": prompts}
                rows.append(row | shares(found, learnt, prompts))
                print(rows[-1], flush=True)
    about = {"stream": STREAM, "backbone": BACKBONE, "choices": CHOICES, "limit": LIMIT}
    write_json(RESULTS, about | {"scored": SCORED, "rows": rows})


def kept(kind: str) -> Found:
    file = KEPT / f"{kind.replace(' ', '_')}.safetensors"
    if not file.is_file():
        stream, backbone = load_stream(STREAM, limits=Limits(ENOUGH, SCORED, SCORED)), load_backbone(BACKBONE)
        memory = GaussianMemory(backbone.model.config.hidden_size, 1)
        tensors = {
            f"{number}/{split}": features(texts(task, split, TEMPLATES[kind](number)), memory, backbone)
            for number, task in enumerate(stream.tasks)
            for split in SPLITS
        }
        KEPT.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file)
    tensors = load_file(file)
    return [{split: tensors[f"{number}/{split}"] for split in SPLITS} for number in range(len(tensors) // len(SPLITS))]


def texts(task: Task, split: str, template: str | None) -> list[str]:
    """A task's prompts, their contents perhaps in another template."""
    before, after = task.spec.template.partition("{")[0], task.spec.template.rpartition("}")[2]
    prompts = [item.prompt for item in task.split(split)]
    if template is None:
        return prompts
    return [template.format(prompt.removeprefix(before).removesuffix(after)) for prompt in prompts]


def features(prompts: list[str], memory: GaussianMemory, backbone: Any) -> Tensor:
    """Features of prompts, ``(n, q)``, of which too long ones lose their beginning."""
    ids = [torch.tensor(backbone.tokenizer(prompt)["input_ids"][-TOKENS:]) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    parts = []
    for begin in range(0, len(order), BATCH):
        batch = [ids[place] for place in order[begin : begin + BATCH]]
        mask = pad_sequence([torch.ones(len(one)) for one in batch], batch_first=True)
        embeddings = backbone.model.get_input_embeddings()(pad_sequence(batch, batch_first=True)).detach()
        parts.append(memory.features(middle_states(backbone.model, embeddings, mask), mask))
    return torch.cat(parts)[torch.tensor(order).argsort()]


def shares(found: Found, learnt: int, prompts: int) -> dict[str, Any]:
    """Of learnt tasks' prompts those that do not fall back, and that find their task; of others those that do.

    Beside it the others without those that have kin among the learnt.
    """
    generator, names = torch.Generator().manual_seed(0), [task.name for task in read_definition(STREAM).tasks]
    kinds = ("own", "right", "foreign", "strange")
    confidences: dict[str, dict[str, list[Tensor]]] = {split: {kind: [] for kind in kinds} for split in SPLITS[1:]}
    for _ in range(CHOICES):
        order = torch.randperm(len(found), generator=generator).tolist()
        memory = GaussianMemory(1, len(found))
        for task in order[:learnt]:
            train = found[task]["train"]
            memory.observe(train[torch.randperm(len(train), generator=generator)[:prompts]])
            memory.learn(task)
        known = {names[task] for task in order[:learnt]}
        kin = {name for group in KIN if group & known for name in group}
        for task, name in enumerate(names):
            for split, parts in confidences.items():
                rows, confidence = memory.infer(found[task][split])
                if name in known:
                    parts["own"].append(confidence)
                    parts["right"].append(confidence.where(rows == task, 0.0))
                else:
                    parts["foreign"].append(confidence)
                    parts["strange"] += [confidence] if name not in kin else []
    cell: dict[str, Any] = {}
    for split, parts in confidences.items():
        cell[split] = {f"{kind}_kept": share(torch.cat(parts[kind]) == 1) for kind in ("own", "right")}
        for kind in ("foreign", "strange") if parts["foreign"] else ():
            cell[split][f"{kind}_fall_back"] = share(torch.cat(parts[kind]) < 1)
    return cell


def share(which: Tensor) -> float:
    return round(which.float().mean().item(), 4)


if __name__ == "__main__":
    main()
