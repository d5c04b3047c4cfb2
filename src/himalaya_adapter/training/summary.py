"""From the stored scores of a run to the files of its results."""

from collections.abc import Mapping, Sequence
from typing import Any

from himalaya_adapter.evaluation import metrics
from himalaya_adapter.evaluation.item_scores import write_item_scores
from himalaya_adapter.identity import sealed
from himalaya_adapter.storage import write_json
from himalaya_adapter.streams import Stream
from himalaya_adapter.training.run_store import BEFORE, RELEASED, UNLABELLED, RunStore, values

FORMAT = 1
KEPT_IN_FILES = ("item_scores", "answers", "reused")  # of a stored score, not in a cell of the matrix
PROMPT_SHOWN = 600  # characters of a sample's prompt, its end
NORMS = ("update_norm_max", "atom_norm_max")


def write_results(store: RunStore, stream: Stream, facts: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Write the results of a run whose scores are all stored: matrix, scores of the items, samples and metrics.

    Args:
        store: Its folder.
        stream: Its tasks.
        facts: What the run is, as ``metrics.json`` tells it; among it its ``split`` and its ``seed``.
        measured: Numbers that are not derived from the scores (drift, memory, parameters).
    """
    count = len(stream.tasks)
    rows, learned = store.matrix(count), store.learned()
    # Of the last two there are scores only for a method that can tell the task from the prompt, or has a release file.
    before, unlabelled, released = (
        [score for score in store.scores(row, count) if score] for row in (BEFORE, UNLABELLED, RELEASED)
    )
    everywhere: list[Sequence[dict[str, Any] | None]] = [before, *rows, unlabelled, released]
    of_task = [[score for row in everywhere for score in row[task : task + 1] if score] for task in range(count)]
    scores, items = values(rows, "score"), values(rows, "item_scores")
    (auc_low, auc_high), of_rows = metrics.bootstrap_retained_accuracy(scores, items, seed=facts["seed"])
    answers = values([before, *rows], "answers")
    after = [row + 1 for row in metrics.measured_rows(scores)]
    train_seconds = sum(record["train_seconds"] for record in learned)
    cost = evaluation_cost([score for one in of_task for score in one], train_seconds)
    curve = zip(after, metrics.retained_accuracy(scores), of_rows, strict=True)
    summary = {
        "format": FORMAT,
        **facts,
        "measured_rows": after,
        **{name: measure(scores) for name, measure in metrics.MEASURES.items()},
        "retained_accuracy_auc_low": auc_low,
        "retained_accuracy_auc_high": auc_high,
        "unlabelled_accuracy": _mean(unlabelled, "score"),
        "tasks_recognised": _mean(unlabelled, "recognised"),
        "released_accuracy": _mean(released, "score"),
        "frozen_accuracy": _mean(before, "score"),
        **measured,
        "stored_bytes": learned[-1]["stored_bytes"],
        "train_seconds": train_seconds,
        "eval_seconds": cost["seconds"],
        "evaluation_cost": cost,
        **{name: learned[-1].get(name) for name in NORMS},
        "retained_accuracy": [
            {"after": row, "mean": mean, "low": low, "high": high} for row, mean, (low, high) in curve
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
                "eval_seconds": _mean(of_task[index], "seconds"),
            }
            for index, task in enumerate(stream.tasks)
        ],
    }
    matrix = {
        "format": FORMAT,
        "tasks": [task.name for task in stream.tasks],
        "before": [_cell(score) for score in before],
        "rows": [[_cell(score) for score in row] for row in rows],
    }
    write_json(store.folder / "matrix.json", sealed(matrix))
    write_item_scores(store.folder, items)
    write_json(store.folder / "samples.json", sealed({"tasks": _samples(stream, facts["split"], answers)}))
    # Last: its presence says that the run is finished.
    write_json(store.folder / "metrics.json", sealed(summary))


def _samples(stream: Stream, split: str, answers: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """The first items of each task with their answers before training, right after it, and at the end."""
    found = []
    for index, task in enumerate(stream.tasks):
        of_items = zip(answers[0][index], answers[index + 1][index], answers[-1][index], strict=True)
        items = [
            {"prompt": item.prompt[-PROMPT_SHOWN:], "target": item.target, "answers": list(of_item)}
            for item, of_item in zip(task.split(split), of_items, strict=False)  # those of the first items are kept
        ]
        found.append({"task": task.name, "items": items})
    return found


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


def _cell(score: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: value for key, value in score.items() if key not in KEPT_IN_FILES} if score else None
