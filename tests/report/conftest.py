"""Run folders as a finished run leaves them, every number derived from one random accuracy matrix."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from himalaya_adapter.evaluation.item_scores import write_item_scores
from himalaya_adapter.storage import write_atomic, write_json

ATOMS = 40
CORE_ATOMS = 24
TEST_ITEMS = 100


def cell(score: float, *, n: int = TEST_ITEMS) -> dict[str, Any]:
    """A cell of the matrix with the normal 95 % interval of a proportion."""
    score = float(np.clip(score, 0.0, 1.0))
    half = 1.96 * math.sqrt(score * (1 - score) / n)
    low, high = max(0.0, score - half), min(1.0, score + half)
    return {
        "score": score,
        "low": low,
        "high": high,
        "n": n,
        "metric": "accuracy",
        "strict": 0.98 * score,
        "seconds": 3.2,
    }


def mean_cell(cells: list[dict[str, Any]]) -> dict[str, float]:
    """Mean score with an interval, independent tasks."""
    half = math.hypot(*(c["high"] - c["low"] for c in cells)) / (2 * len(cells))
    mean = float(np.mean([c["score"] for c in cells]))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def build_run(
    folder: Path,
    *,
    tasks: list[str],
    method: str = "himalaya",
    method_name: str = "HIMALAYA",
    forgetting_rate: float = 0.003,
    stored_bytes: int = 612_480,
    seed: int = 0,
    backbone: str = "smollm2-135m",
    stream: str = "demo_stream_6",
    better: float = 0.0,
    protocol: str = "sequential",
    keep_items: bool = True,
) -> Path:
    """Write a finished run whose scores decay by ``forgetting_rate`` a task; returns its folder.

    Test items are equally hard for every method and seed; three of ten are answered at random besides.
    """
    has_atoms = method == "himalaya"
    random = np.random.default_rng(7)  # the same tasks, equally hard, for every method
    count = len(tasks)
    before = [cell(score) for score in random.uniform(0.15, 0.5, count)]
    learnt = random.uniform(0.6, 0.95, count) + better
    hard = random.random((count, TEST_ITEMS))
    of_run = np.random.default_rng([seed, *method_name.encode()])
    learnt += of_run.normal(0, 0.02, count)
    mixed = np.where(of_run.random(hard.shape) < 0.3, of_run.random(hard.shape), hard)
    items = [
        [(mixed[j] < learnt[j] - forgetting_rate * (i - j)).astype(float).tolist() for j in range(i + 1)]
        for i in range(count)
    ]
    if keep_items:
        write_item_scores(folder, items)
    rows = [[cell(np.mean(scores)) for scores in row] for row in items]
    retained = [{"after": i + 1, **mean_cell(row)} for i, row in enumerate(rows)]
    means = [point["mean"] for point in retained]
    a = [[c["score"] for c in row] for row in rows]
    several = count > 1
    area = {
        key: float(np.trapezoid([p[key] for p in retained]) / (count - 1)) if several else retained[0][key]
        for key in ("mean", "low", "high")
    }
    unlabelled = [cell(one["score"] - 0.011) for one in rows[-1]]
    released = [cell(one["score"] - 0.004) for one in rows[-1]]
    last = range(count - 1)
    write_json(folder / "matrix.json", {"format": 1, "tasks": tasks, "before": before, "rows": rows})
    write_json(
        folder / "metrics.json",
        {
            "format": 1,
            "run_id": folder.name,
            "method": method,
            "method_name": method_name,
            "backbone": backbone,
            "stream": stream,
            "seed": seed,
            "protocol": protocol,
            "average_accuracy": means[-1],
            "learning_accuracy": float(np.mean([a[j][j] for j in range(count)])),
            "backward_transfer": float(np.mean([a[-1][j] - a[j][j] for j in last])) if several else None,
            "forgetting": float(np.mean([max(row[j] for row in a[j:-1]) - a[-1][j] for j in last]))
            if several
            else None,
            "average_anytime_accuracy": float(np.mean(means)),
            "retained_accuracy_auc": area["mean"],
            "retained_accuracy_auc_low": area["low"],
            "retained_accuracy_auc_high": area["high"],
            "retention": float(
                np.mean([np.mean([min(1, a[i][j] / a[j][j]) for j in range(i)]) for i in range(1, count)])
            )
            if several
            else None,
            "unlabelled_accuracy": float(np.mean([c["score"] for c in unlabelled])) if has_atoms else None,
            "tasks_recognised": 0.987 if has_atoms else None,
            "released_accuracy": float(np.mean([c["score"] for c in released])) if has_atoms else None,
            "released_bytes": stored_bytes // 9 if has_atoms else None,
            "frozen_accuracy": float(np.mean([c["score"] for c in before])),
            "base_drift": 0.0123 if has_atoms else 0.0871,
            "stored_bytes": stored_bytes,
            "trainable_parameters": stored_bytes // 10,
            "peak_memory_bytes": 2_345_678_901,
            "train_seconds": 14.5 * count,
            "eval_seconds": 3.2 * count * (count + 3) / 2,
            "ewc_lambda": None if has_atoms else 0.4,
            "update_norm_max": 0.9987 if has_atoms else None,
            "atom_norm_max": 1.0004 if has_atoms else None,
            "retained_accuracy": retained,
            "tasks": [
                {
                    "name": name,
                    "kind": "classification",
                    "language": "en",
                    "metric": "accuracy",
                    "n": TEST_ITEMS,
                    "before": before[j],
                    "after_learning": rows[j][j],
                    "final": rows[-1][j],
                    **({"unlabelled": unlabelled[j], "released": released[j]} if has_atoms else {}),
                }
                for j, name in enumerate(tasks)
            ],
        },
    )
    events = []
    for index, name in enumerate(tasks):
        events += _dictionary_events(index, name) if has_atoms else []
        events.append(_task_end(index, name, stored_bytes, has_atoms))
    write_atomic(folder / "events.jsonl", "".join(json.dumps(event) + "\n" for event in events))
    hashes = {name: {split: _sha(f"{name} {split}") for split in ("train", "validation", "test")} for name in tasks}
    versions = {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}
    machine = {"cpu": "Example CPU", "threads": 2, "platform": "Linux-6.1-x86_64"}
    write_json(folder / "environment.json", {**versions, **machine, "seed": seed, "data_hashes": hashes})
    if has_atoms:
        sizes = {"core_atoms": CORE_ATOMS, "elastic_atoms": ATOMS - CORE_ATOMS, "expected_active_atoms": 3}
        adapter = {"peft_type": "HIMALAYA", **sizes}
        write_json(folder / "adapter" / "adapter_config.json", adapter)
    config = {
        "run_id": folder.name,
        "method_name": method_name,
        "model": {"adapter": {"type": method.upper()}},
        "training": {"learning_rate": 0.01, "seed": seed, "protocol": protocol},
    }
    write_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    return folder


def _task_end(index: int, name: str, stored_bytes: int, has_atoms: bool) -> dict[str, Any]:
    event: dict[str, Any] = {
        "event": "task_end",
        "index": index,
        "task": name,
        "stored_bytes": stored_bytes,
        "stored_bytes_by_part": {"lora_A": stored_bytes // 2, "lora_B": stored_bytes - stored_bytes // 2},
        "train_seconds": 14.5,
        "steps": 60,
        "losses": [2.1, 0.6],
        "update_norm_max": None,
        "atom_norm_max": None,
    }
    if not has_atoms:
        return event
    random = np.random.default_rng(index)
    usage = random.dirichlet(np.full(ATOMS, 0.25)) * 2.9
    usage = np.minimum(usage, 1.0)
    parts = {"dictionary": 0.15, "router": 0.29, "projector": 0.41, "sketch": 0.11, "ring buffer": 0.03}
    sizes = {part: int(share * stored_bytes) for part, share in parts.items()}
    sizes["metadata"] = stored_bytes - sum(sizes.values())
    return event | {
        "stored_bytes_by_part": sizes,
        "update_norm_max": 0.9 + 0.0987 * (1 - 0.5 ** (index + 1)),
        "atom_norm_max": 1.0004,
        "expected_active_atoms": float(usage.sum()),
        "active_atoms": 2.4,
        "atom_usage": [float(value) for value in usage],
        "head_directions_left": 240 - 9 * (index + 1),
        "free_atoms": max(0, 16 - 3 * (index + 1)),
    }


def _dictionary_events(index: int, name: str) -> list[dict[str, Any]]:
    """Every task adds an atom and replaces another; from the sixth on it evicts one first; the third drops a step."""
    common = {"index": index, "task": name}
    slot = 3 * index % 16
    first = {"event": "eviction", "slot": slot, "importance": 0.01, "newcomer": 30, "survives": 0.125, "step": 0}
    added = {"event": "promotion", "similarity": 0.25 + index / 100, "slot": (slot + 1) % 16, "step": 22}
    replaced = {"event": "promotion", "similarity": 0.5, "evicted": slot, "survives": 0.875, "slot": slot, "step": 44}
    dropped = {"event": "skipped_step", "step": 50}
    chosen = [first] * (index >= 5) + [added, replaced] + [dropped] * (index == 2)
    return [{**common, **event} for event in chosen]


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run(run_id, tasks=[...], ...)`` writes a finished run under ``tmp_path`` and returns its folder."""
    return lambda run_id, **options: build_run(tmp_path / run_id, **options)
