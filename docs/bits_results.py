"""One adapter a task at several numbers of bits, as benchmarks/bits.py has scored them, beside HIMALAYA's 3 bits."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from himalaya_adapter.budget import count_budget
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.report import paper
from himalaya_adapter.report.formats import format_bytes, format_value
from himalaya_adapter.report.palette import BOUND, OWN
from himalaya_adapter.storage import read_json

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LINES, RUNS = RESULTS / "bits.jsonl", RESULTS / "package25"
PICTURE = Path(__file__).parent / "images" / "score_against_bytes.png"
NAMES = {
    "loreft": "One LoReFT r=1 a task",
    "unilora": "One Uni-LoRA r=4 a task",
    "24": "HIMALAYA",
    "12": "HIMALAYA, 12 atoms",
}
OWN_RUNS = {"24": "himalaya-24atoms-package25", "12": "himalaya-channels-package25"}  # by the atoms of a task
TASKS = 25  # of the stream; bytes are those of all of them
SHOWN = f"\n![Score against the bytes of {TASKS} tasks](images/{PICTURE.name})\n"
Key = tuple[str, int]


def scored(path: Path = LINES) -> dict[Key, dict[str, Mapping[str, Any]]]:
    """Method and bits -> task -> its line, for the tasks that are scored in every way; most bits first."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    found: dict[Key, dict[str, Mapping[str, Any]]] = {}
    for line in sorted([*lines, *_of_himalaya()], key=lambda one: ([*NAMES].index(one["method"]), -one["bits"])):
        found.setdefault((line["method"], line["bits"]), {})[line["task"]] = line
    common = set.intersection(*(set(tasks) for tasks in found.values())) if lines else set()
    return {key: {task: line for task, line in tasks.items() if task in common} for key, tasks in found.items()}


def _of_himalaya() -> list[dict[str, Any]]:
    """HIMALAYA's lines: a run over the stream stores 3 bits, and each task's score never changes."""
    lines = []
    for atoms, run in OWN_RUNS.items():
        matrix, items = (read_json(RUNS / run / name) for name in ("matrix.json", "item_scores.json"))
        lines += [
            {"task": task, "method": atoms, "bits": 3, "score": scores[j]["score"], "item_scores": of_items[j]}
            for j, (task, scores, of_items) in enumerate(
                zip(matrix["tasks"], matrix["rows"], items["rows"], strict=True)
            )
        ]
    return lines


def table(path: Path = LINES) -> str:
    """A line for each method and number of bits, on the same items."""
    found = scored(path)
    if not any(found.values()):
        return "Not measured yet: `python benchmarks/bits.py`.\n"
    lines = ["| method | bits | bytes of 25 tasks | tasks | score | score − most bits |", "|---|---|---|---|---|---|"]
    for (method, bits), tasks in found.items():
        most = found[next(key for key in found if key[0] == method)]
        change = "" if most is tasks else paired_change(list(tasks.values()), [most[task] for task in tasks])
        size, score = format_bytes(_bytes(method, tasks)), format_value(_score(tasks), "score")
        lines.append(f"| {NAMES[method]} | {bits} | {size} | {len(tasks)} | {score} | {change} |")
    return "\n".join(lines) + "\n" + SHOWN


def _score(tasks: Mapping[str, Mapping[str, Any]]) -> float:
    return fmean(line["score"] for line in tasks.values())


def _bytes(method: str, tasks: Mapping[str, Mapping[str, Any]]) -> float:
    """Of all tasks of the stream: as many files, or HIMALAYA's one release with room for as many."""
    if method not in OWN_RUNS:
        return TASKS * fmean(line["bytes"] for line in tasks.values())
    return _release_bytes(int(method))


@cache
def _release_bytes(atoms: int) -> int:
    room = f"model.adapter.options={{atoms_per_task: {atoms}, elastic_atoms: {atoms * TASKS}, max_tasks: {TASKS}}}"
    released = count_budget(compose_run(["run=himalaya-package25", room]).run).released
    assert released is not None
    return sum(released.values())


def paired_change(lines: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
    """The mean paired difference over the items of each line, and its 95 % interval: lines are independent."""
    gaps = [
        [own - other for own, other in zip(line["item_scores"], most["item_scores"], strict=True)]
        for line, most in zip(lines, others, strict=True)
    ]
    mean = fmean(fmean(of_task) for of_task in gaps)
    error = math.sqrt(sum(variance(of_task) / len(of_task) for of_task in gaps)) / len(gaps)
    low, high = (format_value(mean + side * 1.96 * error, "signed") for side in (-1, 1))
    return f"{format_value(mean, 'signed')} [{low}, {high}]"


def points(path: Path = LINES) -> dict[str, list[tuple[int, float, float]]]:
    """Of each method its bits, the bytes of all tasks, and the mean score."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for (method, bits), tasks in scored(path).items():
        if tasks:
            found.setdefault(NAMES[method], []).append((bits, _bytes(method, tasks), _score(tasks)))
    return found


def shown() -> str:
    """A hash of what the picture shows, which its file carries."""
    return hashlib.sha256(json.dumps(points()).encode()).hexdigest()


def draw() -> None:
    """Write the picture, if there is something to show: a line a method, a mark a number of bits."""
    if not points():
        return
    with paper.sheet(4.2) as figure:
        axes = figure.subplots()
        for (name, marks), style in zip(points().items(), ("o-", "s--", "D", "d"), strict=False):
            color = OWN if name.startswith("HIMALAYA") else BOUND
            axes.plot([size for _, size, _ in marks], [score for *_, score in marks], style, color=color, label=name)
            for bits, size, score in marks:
                axes.annotate(f"{bits}", (size, score), (5, 5), textcoords="offset points")
        axes.set_xscale("log")
        axes.margins(x=0.2)
        axes.set_ylim(0, 1.2 * max(score for marks in points().values() for *_, score in marks))
        axes.legend(loc="lower left")
        axes.set(xlabel=f"bytes of {TASKS} tasks; beside a mark its bits", ylabel="mean score")
    figure.savefig(PICTURE, metadata={"Description": shown()})
