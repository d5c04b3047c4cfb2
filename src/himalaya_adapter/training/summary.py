"""From the stored scores of a run to its matrix and its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from himalaya_adapter.evaluation import metrics
from himalaya_adapter.experiments.method_options import method_of
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.streams import Stream
from himalaya_adapter.training.run_store import BEFORE, RELEASED, UNLABELLED, RunStore

FORMAT = 1
KEPT_IN_FILES = ("item_scores", "answers", "reused")  # of a stored score, not in a cell of the matrix


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
    measured_rows = metrics.rows_to_measure(config.evaluation.rows, count)
    rows = [
        [_stored(store, row, task) if row in measured_rows or row == task else None for task in range(row + 1)]
        for row in range(count)
    ]
    # Only for a method that can tell the task from the prompt, or has a release file.
    unlabelled, released = (
        [score for task in range(count) if (score := store.score(row, task)) is not None]
        for row in (UNLABELLED, RELEASED)
    )
    learned = store.learned()
    scores = [[cell["score"] if cell else None for cell in row] for row in rows]
    items = [[cell["item_scores"] if cell else [] for cell in row] for row in rows]
    intervals = metrics.bootstrap_retained_accuracy(scores, items, seed=config.training.seed)
    matrix: dict[str, Any] = {
        "format": FORMAT,
        "tasks": [task.name for task in stream.tasks],
        "before": [_cell(cell) for cell in before],
        "rows": [[_cell(cell) if cell else None for cell in row] for row in rows],
    }
    everywhere: list[Sequence[dict[str, Any] | None]] = [before, *rows, unlabelled, released]
    of_task = [[score for row in everywhere for score in row[task : task + 1] if score] for task in range(count)]
    train_seconds = sum(record["train_seconds"] for record in learned)
    cost = evaluation_cost([score for one in of_task for score in one], train_seconds)
    auc_low, auc_high = intervals.auc
    summary = {
        "format": FORMAT,
        "run_id": config.run_id,
        "method": method_of(config).lower(),
        "method_name": config.method_name,
        "backbone": config.model.backbone.name,
        "stream": stream.name,
        "split": config.evaluation.split,
        "seed": config.training.seed,
        "measured_rows": [row + 1 for row in measured_rows],
        "learning_rate": config.training.learning_rate,
        "protocol": config.training.protocol,
        "ewc_lambda": config.model.adapter.ewc_lambda,
        **{name: measure(scores) for name, measure in metrics.MEASURES.items()},
        "retained_accuracy_auc_low": auc_low,
        "retained_accuracy_auc_high": auc_high,
        "unlabelled_accuracy": _mean(unlabelled, "score"),
        "tasks_recognised": _mean(unlabelled, "recognised"),
        "released_accuracy": _mean(released, "score"),
        "frozen_accuracy": sum(cell["score"] for cell in before) / count,
        **measured,
        "stored_bytes": learned[-1]["stored_bytes"],
        "train_seconds": train_seconds,
        "eval_seconds": cost["seconds"],
        "evaluation_cost": cost,
        "update_norm_max": learned[-1].get("update_norm_max"),
        "atom_norm_max": learned[-1].get("atom_norm_max"),
        "retained_accuracy": [
            {"after": row + 1, "mean": mean, "low": low, "high": high}
            for row, mean, (low, high) in zip(
                measured_rows, metrics.retained_accuracy(scores), intervals.rows, strict=True
            )
        ],
        "tasks": [
            {
                "name": task.name,
                "kind": task.spec.kind,
                "language": task.spec.language,
                "metric": task.spec.metric,
                "n": before[index]["n"],
                "before": matrix["before"][index],
                "after_learning": matrix["rows"][index][index],
                "final": matrix["rows"][-1][index],
                **({"unlabelled": _cell(unlabelled[index])} if unlabelled else {}),
                **({"released": _cell(released[index])} if released else {}),
                "eval_seconds": sum(score["seconds"] for score in of_task[index]) / len(of_task[index]),
            }
            for index, task in enumerate(stream.tasks)
        ],
    }
    return matrix, summary


def evaluation_cost(scores: Sequence[Mapping[str, Any]], train_seconds: float) -> dict[str, Any]:
    """What evaluation costs.

    Args:
        scores: Every score of the run: before training, the matrix, without labels, of the release file.
        train_seconds: Seconds of training.

    Returns:
        ``evaluations``, one for each score of one task; their ``seconds``, all together and per evaluation; their
        ``share_of_run``, of training and evaluation together. A score that another run had left is counted with the
        seconds it took there, so that runs compare whichever came first; ``reused`` and ``reused_seconds`` say how
        many there are and what was saved.
    """
    seconds = sum(score["seconds"] for score in scores)
    reused = [score for score in scores if score.get("reused")]
    return {
        "evaluations": len(scores),
        "seconds": seconds,
        "seconds_per_task": seconds / len(scores),
        "share_of_run": seconds / (seconds + train_seconds),
        "reused": len(reused),
        "reused_seconds": sum(score["seconds"] for score in reused),
    }


def _mean(scores: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return sum(score[key] for score in scores) / len(scores) if scores else None


def _stored(store: RunStore, row: int | str, task: int) -> dict[str, Any]:
    score = store.score(row, task)
    if score is None:
        raise RuntimeError(f"score of task {task} after {row} is missing in {store.folder}")
    return score


def _cell(score: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in score.items() if key not in KEPT_IN_FILES}
