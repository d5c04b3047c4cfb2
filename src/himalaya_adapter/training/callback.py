"""What happens around the optimiser's steps of a task. The callback holds no state that a checkpoint would need."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.methods.events import Event, SkippedStep
from himalaya_adapter.training.run_store import mark_complete

logger = logging.getLogger(__name__)
SECONDS = "seconds_of_steps"
# So many steps in a row without a finite gradient are no accident.
MOST_SKIPPED = 10
CURVE_POINTS = 50


class StreamCallback(TrainerCallback):
    """Lets the method anneal, protect and grow, drops steps that are not finite, marks whole checkpoints.

    What happened goes to the Trainer's log history, which travels with the checkpoints: see `noted_events`.

    Args:
        model: The PEFT model.
        task: Name of the task, for messages.
    """

    def __init__(self, model: Any, task: str) -> None:
        self.model = model
        self.method = continual(model)
        self.task = task
        self.handles: list[Any] = []
        self.clock = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook the method into the optimiser, and go on with the time that earlier processes have taken."""
        self.clock = time.perf_counter() - seconds_of_steps(state)
        optimizer = kwargs["optimizer"]
        self.handles = self.method.protect(getattr(optimizer, "optimizer", optimizer), lambda one: _note(state, one))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the temperature from the step's number, so that a resumed task goes on with the same one."""
        self.method.anneal(state.global_step / state.max_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the gradients away if one of them is not finite: the step then changes nothing.

        Processes have averaged their gradients, so all of them skip the same steps.

        Raises:
            HimalayaError: Too many steps in a row were skipped.
        """
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            return
        self.model.zero_grad()
        self.method.skip_step()
        _note(state, SkippedStep())
        step = state.global_step + 1
        logger.warning("task %s, step %d: loss or gradient is not finite, step skipped", self.task, step)
        skipped = {event["step"] for event in noted_events(state) if event["event"] == SkippedStep.kind}
        if skipped.issuperset(range(step - MOST_SKIPPED + 1, step + 1)):
            raise HimalayaError(
                f"task '{self.task}': {MOST_SKIPPED} steps in a row had a loss or gradient that is not finite, up to "
                f"step {step}; try a lower training.learning_rate or training.mixed_precision=no, with overwrite=true "
                "(the same command goes on from the last checkpoint)"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave out the checkpoint of the last step: resumed from it, the Trainer would take one step more."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time beside what the Trainer has just logged of a step."""
        state.log_history[-1][SECONDS] = time.perf_counter() - self.clock

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as whole, once every process has written its part of it."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            mark_complete(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Unhook."""
        for handle in self.handles:
            handle.remove()


def noted_events(state: TrainerState) -> list[dict[str, Any]]:
    """What happened in a task so far, in order: promotions and skipped steps, each with its step's number from 1."""
    return [entry for entry in state.log_history if "event" in entry]


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


def _note(state: TrainerState, event: Event) -> None:
    state.log_history.append({**event.as_dict(), "step": state.global_step + 1})
