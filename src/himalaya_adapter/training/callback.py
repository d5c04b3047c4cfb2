"""What a run adds to the training of a task. The callback holds no state that a checkpoint would need."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from himalaya_adapter.identity import mark_complete
from himalaya_adapter.methods.events import SkippedStep
from himalaya_adapter.training.task_callback import TaskCallback, noted_events

SECONDS = "seconds_of_steps"
CURVE_POINTS = 50


class StreamCallback(TaskCallback):
    """Measures the time of the steps, and marks whole checkpoints. The runner itself starts and ends the task.

    What happened goes to the Trainer's log history, which travels with the checkpoints: see `noted_events`.

    Args:
        task: Name of the task, for messages.
        told: Called after each step with the task's state and what is logged of the step.
    """

    remedy = (
        "try a lower training.learning_rate or training.mixed_precision=no, with overwrite=true (the same command "
        "goes on from the last checkpoint)"
    )

    def __init__(self, task: str, told: Callable[[TrainerState, Mapping[str, float]], None] | None = None) -> None:
        super().__init__(task)
        self.told = told

    def start(self, state: TrainerState) -> None:
        """Go on with the time that earlier processes have taken."""
        self.clock = time.perf_counter() - seconds_of_steps(state)

    def end(self, state: TrainerState) -> None:
        """Nothing: the runner scores the task as well."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave out the checkpoint of the last step: resumed from it, the Trainer would take one step more."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time beside what the Trainer has just logged, and tell of it if it is a step."""
        state.log_history[-1][SECONDS] = time.perf_counter() - self.clock
        if self.told is not None and "loss" in kwargs["logs"]:
            self.told(state, kwargs["logs"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as whole, once every process has written its part of it."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            mark_complete(folder)


def seconds_of_steps(state: TrainerState) -> float:
    """Seconds from a task's first step to the last one logged, over all processes that have worked on it."""
    return next((entry[SECONDS] for entry in reversed(state.log_history) if SECONDS in entry), 0.0)


def step_losses(state: TrainerState) -> list[float]:
    """The losses of a task's steps, in order, without those that were skipped; penalties (EWC) are part of them."""
    skipped = {event["step"] for event in noted_events(state) if event["event"] == SkippedStep.kind}
    return [entry["loss"] for entry in state.log_history if "loss" in entry and entry["step"] not in skipped]


def loss_curve(losses: Sequence[float]) -> list[float]:
    """A task's losses as they are shown: means over at most 50 equal parts of its steps."""
    parts = np.array_split(losses, min(len(losses), CURVE_POINTS)) if losses else []
    return [round(float(part.mean()), 4) for part in parts]
