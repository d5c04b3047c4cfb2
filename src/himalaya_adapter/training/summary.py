"""From the stored scores of a run to its matrix and its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from himalaya_adapter.evaluation import metrics
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.streams import Stream
from himalaya_adapter.training.run_store import BEFORE, RELEASED, UNLABELLED, RunStore

FORMAT = 1
MEASURES = {
    "average_accuracy": metrics.average_accuracy,
    "learning_accuracy": metrics.learning_accuracy,
    "backward_transfer": metrics.backward_transfer,
    "forgetting": metrics.forgetting,
    "average_anytime_accuracy": metrics.average_anytime_accuracy,
    "retained_accuracy_auc": metrics.retained_accuracy_auc,
    "retention": metrics.retention,
}


def summarise(
    config: RunConfig, stream: Stream, store: RunStore, measured: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``matrix.json`` and ``metrics.json`` of a run whose scores are all stored.

    Args:
        config: The run.
        stream: Its tasks.
        store: Its folder.
        measured: Numbers that are not derived from the scores (drift, memory, parameters).
    """
    count = len(stream.tasks)
    before = [_stored(store, BEFORE, task) for task in range(count)]
    rows = [[_stored(store, row, task) for task in range(row + 1)] for row in range(count)]
    # Only for a method that can tell the task from the prompt, or has a release file.
    unlabelled, released = (
        [score for task in range(count) if (score := store.score(row, task)) is not None]
        for row in (UNLABELLED, RELEASED)
    )
    learned = store.learned()
    scores = [[cell["score"] for cell in row] for row in rows]
    items = [[cell["item_scores"] for cell in row] for row in rows]
    intervals = metrics.bootstrap_retained_accuracy(scores, items, seed=config.training.seed)
    matrix = {
        "format": FORMAT,
        "tasks": [task.name for task in stream.tasks],
        "before": [_cell(cell) for cell in before],
        "rows": [[_cell(cell) for cell in row] for row in rows],
    }
    auc_low, auc_high = intervals.auc
    summary = {
        "format": FORMAT,
        "run_id": config.run_id,
        "method": config.model.adapter.type.lower(),
        "method_name": config.method_name,
        "backbone": config.model.backbone.name,
        "stream": stream.name,
        "seed": config.training.seed,
        "learning_rate": config.training.learning_rate,
        **{name: measure(scores) for name, measure in MEASURES.items()},
        "retained_accuracy_auc_low": auc_low,
        "retained_accuracy_auc_high": auc_high,
        "unlabelled_accuracy": _mean(unlabelled, "score"),
        "tasks_recognised": _mean(unlabelled, "recognised"),
        "released_accuracy": _mean(released, "score"),
        "frozen_accuracy": sum(cell["score"] for cell in before) / count,
        **measured,
        "stored_bytes": learned[-1]["stored_bytes"],
        "train_seconds": sum(record["train_seconds"] for record in learned),
        "eval_seconds": sum(cell["seconds"] for row in [before, *rows] for cell in row),
        "update_norm_max": learned[-1].get("update_norm_max"),
        "atom_norm_max": learned[-1].get("atom_norm_max"),
        "retained_accuracy": [
            {"after": row + 1, "mean": mean, "low": low, "high": high}
            for row, (mean, (low, high)) in enumerate(
                zip(metrics.retained_accuracy(scores), intervals.rows, strict=True)
            )
        ],
        "tasks": [
            {
                "name": task.name,
                "kind": task.spec.kind,
                "language": task.spec.language,
                "metric": task.spec.metric,
                "n": before[index]["n"],
                "before": _cell(before[index]),
                "after_learning": _cell(rows[index][index]),
                "final": _cell(rows[-1][index]),
                **({"unlabelled": _cell(unlabelled[index])} if unlabelled else {}),
                **({"released": _cell(released[index])} if released else {}),
            }
            for index, task in enumerate(stream.tasks)
        ],
    }
    return matrix, summary


def _mean(scores: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return sum(score[key] for score in scores) / len(scores) if scores else None


def _stored(store: RunStore, row: int | str, task: int) -> dict[str, Any]:
    score = store.score(row, task)
    if score is None:
        raise RuntimeError(f"score of task {task} after {row} is missing in {store.folder}")
    return score


def _cell(score: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in score.items() if key != "item_scores"}
