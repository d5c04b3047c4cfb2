"""What grows with the number of tasks: up to 1,000 tasks in one adapter of HIMALAYA, on random Llamas.

The small model (d = 64) learns each of 1,000 tasks in two steps of four items. On the model of SmolLM2-135M's shape
(d = 576, 30 layers, a small vocabulary) the atoms of 100 tasks are random numbers instead: bytes and times do not
depend on their values. Each task has a prompt template of its own, of random tokens, which is the easiest case for
finding a task by its prompt. When 10, 30, 100, 300 and 1,000 tasks have been learnt, every earlier task's logits are
compared with those right after it was learnt, bit for bit; the adapter and its release are saved, loaded and compared,
too.

At the end the adapters of all these numbers of tasks take turns in rounds, so that a busy moment hits all alike. Times
are seconds of this thread: other processes hardly count, waiting for the disk does not.

Run: python benchmarks/many_tasks.py [--parts ...]

Each part is written to benchmarks/results/many_tasks.json when it is done.
"""

import argparse
import copy
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from himalaya_adapter import HimalayaConfig, save_release
from himalaya_adapter.budget import BYTES_PER_MB, count_budget
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.methods.construction import adapt
from himalaya_adapter.methods.himalaya import HimalayaAdapter
from himalaya_adapter.methods.himalaya.update import unscaled
from himalaya_adapter.methods.release import WEIGHTS_FILE
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.training.environment import processor_name

RESULT = Path(__file__).parent / "results" / "many_tasks.json"
COUNTS = (10, 30, 100, 300, 1000)  # numbers of tasks at which all is measured
LIMIT_MB = 2.5  # the original plan's
VOCABULARY, BEFORE, CONTENT, AFTER, ANSWER = 384, 6, 8, 4, 2  # tokens
BATCH, RATE = 4, 0.01
HELD_OUT = 2  # prompts of each task that the adapter has not seen
HELD_OUT_SEED = 1_000_000  # beyond those of the training prompts
FROM_FILE = 50  # tasks, evenly spaced, whose logits are compared after loading
AT_ONCE = 100  # prompts


@dataclass(frozen=True)
class Setting:
    """One model and one size of a task.

    Args:
        width: Hidden size ``d``.
        layers: Decoder layers.
        heads: Attention heads.
        inner: Width inside of the feed-forward part.
        atoms: Atoms of a task.
        steps: Training steps of a task; 0: its atoms are random numbers.
        most: Tasks that are learnt, and that the adapter has room for.
    """

    width: int
    layers: int
    heads: int
    inner: int
    atoms: int
    steps: int
    most: int


ROOM = "room"
PARTS: dict[str, Setting | None] = {
    f"d={model[0]}, atoms={atoms}": Setting(*model, atoms=atoms, steps=steps, most=most)
    for *model, steps, most in ((64, 2, 4, 128, 2, 1000), (576, 30, 9, 1536, 0, 100))
    for atoms in (3, 12)
} | {ROOM: None}


class Task:
    """A template of random tokens around random contents, and an answer of random tokens."""

    def __init__(self, number: int) -> None:
        self.number, self.name = number, f"task {number}"
        self.generator = torch.Generator().manual_seed(number)
        self.before, self.after, self.answer = (self._tokens(1, size) for size in (BEFORE, AFTER, ANSWER))

    def _tokens(self, rows: int, length: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(0, VOCABULARY, (rows, length), generator=generator or self.generator)

    def prompts(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """New prompts ``(count, 18)``."""
        content = self._tokens(count, CONTENT, generator)
        return torch.cat([self.before.expand(count, -1), content, self.after.expand(count, -1)], dim=1)

    def items(self, count: int) -> dict[str, Tensor]:
        """Prompts with the answer behind them, as the model's inputs."""
        ids = torch.cat([self.prompts(count), self.answer.expand(count, -1)], dim=1)
        labels = ids.clone()
        labels[:, :-ANSWER] = -100
        return {"input_ids": ids, "labels": labels}

    def held_out(self) -> Tensor:
        """The same prompts each time, which training does not see ``(2, 18)``."""
        return self.prompts(HELD_OUT, torch.Generator().manual_seed(HELD_OUT_SEED + self.number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS], help="what is measured anew")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts:
        setting = PARTS[part]
        if setting is None:
            found: Any = [room_at_576(atoms) for atoms in (3, 12, 24)]
        else:
            counts = [count for count in COUNTS if count <= setting.most]
            machine = {"cpu": processor_name(), "torch": torch.__version__, "rounds": arguments.rounds}
            found = asdict(setting) | measured(setting, counts, arguments.rounds) | machine
        print(part, found, flush=True)
        known = read_json(RESULT) if RESULT.is_file() else {}
        write_json(RESULT, {name: found if name == part else known.get(name) for name in PARTS})


def measured(setting: Setting, counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """What a setting's adapter is and takes, at each number of tasks."""
    torch.manual_seed(0)
    model = adapted(setting)
    with tempfile.TemporaryDirectory() as folder:
        facts = dict(learnt(model, setting, counts, Path(folder)))
        times = timed(model, counts, Path(folder), rounds)
    return {"counts": [{"tasks": count} | facts[count] | times[count] for count in counts]}


def adapted(setting: Setting) -> PeftModel:
    """A random Llama with a fresh adapter. It learns with the scan, which finds what the tree finds in less time."""
    shape = {"hidden_size": setting.width, "intermediate_size": setting.inner, "num_hidden_layers": setting.layers}
    groups = 2 if setting.heads % 2 == 0 else 3
    heads = {"num_attention_heads": setting.heads, "num_key_value_heads": setting.heads // groups}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **shape, **heads)).eval()
    room = {"atoms_per_task": setting.atoms, "elastic_atoms": setting.most * setting.atoms, "max_tasks": setting.most}
    return adapt(model, HimalayaConfig(task_type="CAUSAL_LM", index="scan", **room), seed=0).eval()


# Learning ------------------------------------------------------------------------------------------------------


def learnt(
    model: PeftModel, setting: Setting, counts: Sequence[int], folder: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Learn task after task; at each of the counts save the adapter, and say what is exact, found and stored."""
    tasks: list[Task] = []
    right_after: list[str] = []
    for number in range(counts[-1]):
        tasks.append(Task(number))
        learn(model, tasks[-1], setting.steps)
        right_after.append(answers(model, tasks[-1]))
        if number + 1 not in counts:
            continue
        place = folder / str(number + 1)
        changed = sum(answers(model, task) != before for task, before in zip(tasks, right_after, strict=True))
        fact = {"changed": changed} | recognised(model, tasks)
        model.save_pretrained(place / "adapter")
        save_release(model, place / "release")
        chosen = range(0, len(tasks), -(-len(tasks) // FROM_FILE))
        for kind in ("adapter", "release"):
            fact[f"{kind}_bytes"] = (place / kind / WEIGHTS_FILE).stat().st_size
            with loaded(model, place / kind):
                fact[f"{kind}_changed"] = sum(answers(model, tasks[one]) != right_after[one] for one in chosen)
        yield number + 1, fact | {"compared_from_files": len(chosen)}


def learn(model: PeftModel, task: Task, steps: int) -> None:
    """Train on a task, or fill it with random numbers."""
    with model.learning(task.name):
        adapter = active(model)
        if not steps:
            model.observe_prompts(task.prompts(BATCH))
            with torch.no_grad():
                adapter.atoms.copy_(unscaled(torch.randn(adapter.atoms.shape) / 2 / adapter.width**0.5))
            return
        optimizer = torch.optim.AdamW([adapter.atoms], RATE, weight_decay=0.0)
        model.train()
        for _ in range(steps):
            model(**task.items(BATCH)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()


@torch.inference_mode()
def answers(model: PeftModel, task: Task) -> str:
    """A hash of the logits of a task's held-out prompts."""
    model.set_task(task.name)
    return hashlib.sha256(model(input_ids=task.held_out()).logits.numpy().tobytes()).hexdigest()


def recognised(model: PeftModel, tasks: Sequence[Task]) -> dict[str, float]:
    """The shares of held-out prompts whose task is found, and that are taken for another task's."""
    prompts = torch.cat([task.held_out() for task in tasks])
    found = [name for part in prompts.split(AT_ONCE) for name, _ in model.infer_task(part)]
    wanted = [task.name for task in tasks for _ in range(HELD_OUT)]
    right = sum(one == name for one, name in zip(found, wanted, strict=True))
    return {"recognised": right / len(wanted), "mistaken": (len(wanted) - right - found.count(None)) / len(wanted)}


@contextmanager
def loaded(model: PeftModel, folder: Path, name: str = "loaded") -> Iterator[None]:
    """With an adapter out of a file in the place of the one that is there."""
    before = model.active_adapter
    model.load_adapter(str(folder), name)
    model.set_adapter(name)
    yield
    model.set_adapter(before)
    model.delete_adapter(name)


def active(model: PeftModel) -> HimalayaAdapter:
    """The adapter that answers."""
    return model.base_model.himalaya_shared[model.active_adapter]


# Times ---------------------------------------------------------------------------------------------------------


def timed(model: PeftModel, counts: Sequence[int], folder: Path, rounds: int) -> dict[int, dict[str, Any]]:
    """Milliseconds of each action at each number of tasks, and what it takes against the fewest tasks."""
    for count in counts:
        model.load_adapter(str(folder / str(count) / "adapter"), str(count), is_trainable=True)
    taken: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for number in range(rounds + 1):
        for count in counts if number % 2 else reversed(counts):
            model.set_adapter(str(count))
            seconds = one_round(model, count, folder)
            if number:  # the first one warms up
                taken[count].append(seconds)
    found = {}
    for count in counts:
        names = [*taken[count][0]]
        milliseconds = {name: 1e3 * statistics.median(one[name] for one in taken[count]) for name in names}
        growth = {
            name: quartiles([one[name] / few[name] for one, few in zip(taken[count], taken[counts[0]], strict=True)])
            for name in names
        }
        tree = quartiles([one["end, tree"] / one["end, scan"] for one in taken[count]])
        rounded = {name: float(f"{value:.4g}") for name, value in milliseconds.items()}
        found[count] = {"milliseconds": rounded, f"to_{counts[0]}_tasks": growth, "end_tree_to_scan": tree}
    return found


def one_round(model: PeftModel, count: int, folder: Path) -> dict[str, float]:
    """Seconds of each action with the active adapter."""
    adapter, seconds = active(model), dict[str, float]()
    first, last = Task(0), Task(count - 1)
    prompt = last.held_out()[:1]

    def timed(name: str, act: Callable[[], object]) -> None:
        started = time.thread_time()
        act()
        seconds[name] = time.thread_time() - started

    with torch.inference_mode():
        model.set_task(first.name)
        with model.disable_adapter():
            timed("pass, frozen model", lambda: model(input_ids=prompt))
        model(input_ids=prompt)
        timed("pass", lambda: model(input_ids=prompt))
        timed("set_task and pass", lambda: (model.set_task(last.name), model(input_ids=prompt)))
        timed("infer_task after a change", lambda: model.infer_task(prompt))
        timed("infer_task", lambda: model.infer_task(prompt))
    for index, word in (("learnable_kd_tree", "tree"), ("scan", "scan")):
        before = copy.deepcopy(adapter.state_dict())
        adapter.config.index = index
        timed("start", lambda: model.start_task(last.name))  # it is learnt further, and stored again
        timed(f"end, {word}", model.end_task)
        adapter.load_state_dict(before)
    with tempfile.TemporaryDirectory() as place:
        timed("save", lambda: model.save_pretrained(place, selected_adapters=[str(count)]))
    timed("load", lambda: model.load_adapter(str(folder / str(count) / "adapter"), "again"))
    model.delete_adapter("again")
    return seconds


def quartiles(ratios: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    if len(ratios) < 2:
        return [float(f"{ratios[0]:.3g}")] * 3
    return [float(f"{value:.3g}") for value in statistics.quantiles(ratios, n=4, method="inclusive")]


# Room ----------------------------------------------------------------------------------------------------------


def room_at_576(atoms: int) -> dict[str, Any]:
    """How many tasks fit into 2.5 MB at smollm2-135m's width, as `himalaya budget` counts, and what a file has."""
    limit = round(LIMIT_MB * BYTES_PER_MB)
    found: dict[str, Any] = {"atoms": atoms}
    for kind in ("adapter", "release"):
        few, many = 100, 1000
        a_task = (counted(atoms, many)[kind] - counted(atoms, few)[kind]) / (many - few)
        tasks = few + int((limit - counted(atoms, few)[kind]) / a_task)
        while counted(atoms, tasks)[kind] > limit:
            tasks -= 1
        while counted(atoms, tasks + 1)[kind] <= limit:
            tasks += 1
        model = adapted(Setting(576, 1, 9, 64, atoms, steps=0, most=tasks))
        with tempfile.TemporaryDirectory() as folder:
            if kind == "adapter":
                model.save_pretrained(folder)
            else:
                save_release(model, folder)
            size = (Path(folder) / WEIGHTS_FILE).stat().st_size
        said = counted(atoms, tasks)[kind]
        found[kind] = {"tasks": tasks, "counted_bytes": said, "file_bytes": size, "bytes_a_task": round(a_task)}
    return found


@cache
def counted(atoms: int, tasks: int) -> dict[str, int]:
    """Bytes of the adapter and of its release with room for so many tasks."""
    options = f"{{atoms_per_task: {atoms}, elastic_atoms: {atoms * tasks}, max_tasks: {tasks}}}"
    words = ["run=himalaya-package25", f"model.adapter.options={options}"]
    budget = count_budget(compose_run([*words, "model.adapter.total_parameter_budget_mb=null"]).run)
    assert budget.released is not None
    return {"adapter": sum(budget.stored.values()), "release": sum(budget.released.values())}


if __name__ == "__main__":
    main()
