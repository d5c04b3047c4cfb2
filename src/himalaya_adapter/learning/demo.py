"""The demo: tasks of three kinds one after another, learnt by HIMALAYA and by one LoRA trained on in the same way."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.deploy.adapter_folder import LoadedAdapter, load_adapter
from himalaya_adapter.deploy.answering import answer
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.construction import adapt, method_config
from himalaya_adapter.storage import IN_USE, in_use, write_atomic
from himalaya_adapter.streams import Item, Limits, Task
from himalaya_adapter.streams.catalogue import load_task

from .adapter_store import AdapterStore
from .asking import score
from .data import read_data
from .held_out import HeldOut, hold_out
from .learn import DEFAULT_BACKBONE, Learner, LearnOptions, learn
from .rows import read_rows

DATA = "data"
STREAM = "demo_stream_6"
TASKS = {"room_extraction": "exact_match", "language_identification": "accuracy", "interface_translation": "chrf"}
ITEMS = 200  # of a task; a tenth of them is held out
STEPS = 45  # of 4 items: each item once
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "o_proj"]}
LORA_RATE = 1e-3  # the best of three for this LoRA on the demo's stream
QUESTIONS, ANSWER_TOKENS = 3, 12


@dataclass
class DemoResult:
    """What the demo has shown.

    Args:
        backbone: Name of the frozen model.
        tasks: Names of the tasks in their order, each with its metric.
        frozen: Score of the frozen model by task.
        after: Of each method, for each step, the scores by task of all tasks so far.
        questions: Items of the first task that nobody has learnt.
        answers: Of each method, its answers to them after the last task.
    """

    backbone: str
    tasks: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, float] = field(default_factory=dict)
    after: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {"HIMALAYA": [], "LoRA r=8": []})
    questions: list[Item] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)


def run_demo(folder: Path, *, steps: int = STEPS, items: int = ITEMS, backbone: str = DEFAULT_BACKBONE) -> DemoResult:
    """Learn, score and ask; the adapter of an earlier demo in the folder is deleted.

    Args:
        folder: Where the files of the tasks and HIMALAYA's adapter go.
        steps: Optimiser steps of a task.
        items: Of a task.
        backbone: Name or folder of the frozen model.

    Raises:
        HimalayaError: Something is in the folder that no demo has written.
    """
    if in_use(folder) and not (folder / DATA).is_dir():
        raise HimalayaError(IN_USE.format(folder))
    for left in ("adapter", ".adapter.learning"):
        shutil.rmtree(folder / left, ignore_errors=True)
    files = _write_tasks(folder / DATA, items)
    result = DemoResult(backbone)
    himalaya, lora = result.after
    ours = folder / "adapter"
    for name, file in files.items():
        print(f"himalaya learn {ours} {file} --task {name} --steps {steps}", flush=True)
        options = LearnOptions(backbone=backbone, steps=steps, metric=TASKS[name], keep_check=True)
        learnt = learn(ours, str(file), name, options)
        changes = [*learnt.earlier, learnt.task]
        result.tasks[name], result.frozen[name] = learnt.task.metric, learnt.task.before
        result.after[himalaya].append({change.task: change.after for change in changes})
        print(" ".join(f"{change.task} {change.after:.2f}" for change in changes), flush=True)
    loaded = load_adapter(ours, task=next(iter(files)))
    rival, tasks = _rival(folder, files, steps, backbone, result.after[lora])
    result.questions = list(tasks[0].test[:QUESTIONS])
    for method, asked in {himalaya: loaded, lora: rival}.items():
        result.answers[method] = [
            answer(asked, item.prompt, ANSWER_TOKENS).strip().split("\n")[0] for item in result.questions
        ]
    return result


def _write_tasks(folder: Path, items: int) -> dict[str, Path]:
    """Each task as a file such as users have."""
    files = {name: folder / f"{name}.jsonl" for name in TASKS}
    for name, file in files.items():
        task = load_task(STREAM, name, limits=Limits(train=items, validation=1, test=1))
        rows = [{"prompt": item.prompt, "completion": item.target} for item in task.train]
        write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return files


def _rival(
    folder: Path, files: dict[str, Path], steps: int, backbone: str, rows: list[dict[str, float]]
) -> tuple[LoadedAdapter, list[Task]]:
    """One LoRA on the same items in the same order; adds its scores to ``rows``."""
    loaded = load_backbone(backbone)
    options = LearnOptions(steps=steps, learning_rate=LORA_RATE)
    store = AdapterStore(folder / "lora")
    model = adapt(loaded.model, method_config("LORA", LORA), options.seed)
    rival = LoadedAdapter(model, loaded.tokenizer, (), loaded.name, store.folder)
    learner, tasks = Learner(store, options, rival), list[Task]()
    for name, file in files.items():
        own = read_data(read_rows(str(file)), str(file), loaded.tokenizer, learner.context, metric=TASKS[name])
        tasks.append(hold_out(own, str(file), name, HeldOut(options.seed))[0])
        store.begin({"task": name})
        learner.train(tasks[-1], learner.training(len(tasks[-1].train)))
        shutil.rmtree(store.unfinished)
        rows.append({task.name: score(model, loaded.tokenizer, task).score for task in tasks})
        print("LoRA:", " ".join(f"{task} {found:.2f}" for task, found in rows[-1].items()), flush=True)
    return rival, tasks


def print_result(result: DemoResult) -> None:
    """The scores as a table, and the answers to the first task's questions."""
    console = Console(markup=False, emoji=False)
    for method, rows in result.after.items():
        table = Table("after learning", *result.tasks, title=method)
        for name, scores in zip(("nothing", *result.tasks), (result.frozen, *rows), strict=True):
            table.add_row(name, *(f"{scores[task]:.2f}" if task in scores else "" for task in result.tasks))
        console.print(table)
    console.print(f"Questions of {next(iter(result.tasks))}, asked after all tasks:", highlight=False)
    for number, item in enumerate(result.questions):
        answers = "; ".join(f"{method}: {told[number]!r}" for method, told in result.answers.items())
        console.print(f"{item.prompt!r} (right: {item.target!r}) {answers}", highlight=False)
