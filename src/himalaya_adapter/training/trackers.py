"""What TensorBoard, Weights & Biases, MLflow and trackio get of a run: losses on one running step, and scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from himalaya_adapter.evaluation.metrics import MEASURES

# Of all measures those that a stream is followed by, with what they are called so far.
FOLLOWED = {"average_accuracy": "retained_accuracy"} | {key: key for key in ("forgetting", "retained_accuracy_auc")}
OF_SCORES = "eval_"  # which the trackers' callbacks take for what is not of training


class Trackers:
    """The Trainer's own callbacks for trackers, one set for all tasks: each task has a Trainer of its own.

    Losses come at the step of the whole stream, counted from 1; scores, retained accuracy, forgetting, AUC and bytes
    at the number of tasks learnt so far.

    Args:
        report_to: Name of the tracker, or ``none``.
        folder: The run's folder, where a tracker keeps its files if it keeps any.
        arguments: Those of a Trainer, whose ``run_name`` is the run's.
        model: What learns.
    """

    def __init__(self, report_to: str, folder: Path, arguments: TrainingArguments, model: Any) -> None:
        self.arguments = arguments
        self.callbacks = [callback() for callback in get_reporting_integration_callbacks(report_to)]
        for callback in self.callbacks:
            if getattr(callback, "logging_dir", folder) is None:
                callback.logging_dir = str(folder / report_to)
            callback.on_train_begin(arguments, TrainerState(), TrainerControl(), model=model)

    def log(self, values: Mapping[str, float], at: int) -> None:
        """Pass values on, at a place on the axis that they belong to."""
        for callback in self.callbacks:
            callback.on_log(self.arguments, TrainerState(global_step=at), TrainerControl(), logs=dict(values))

    def log_scores(self, tasks: Sequence[str], matrix: Sequence[Sequence[float | None]], stored_bytes: int) -> None:
        """Pass on what is known after the last row of the matrix so far.

        Args:
            tasks: Names of the tasks.
            matrix: The rows so far.
            stored_bytes: What is stored by now.
        """
        row = matrix[-1]
        values = {f"score/{task}": score for task, score in zip(tasks, row, strict=False) if score is not None}
        values["stored_bytes"] = float(stored_bytes)
        if None not in row:
            values |= {name: MEASURES[key](matrix) for key, name in FOLLOWED.items()}
        self.log({OF_SCORES + name: value for name, value in values.items()}, len(matrix))

    def end(self) -> None:
        """Close the trackers."""
        for callback in self.callbacks:
            callback.on_train_end(self.arguments, TrainerState(), TrainerControl())
