"""What a Trainer needs around a task: its start and end, and what happens around the optimiser's steps."""

import logging
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.methods.events import Event, SkippedStep
from himalaya_adapter.methods.himalaya import HimalayaModel
from himalaya_adapter.names import normalised

logger = logging.getLogger(__name__)
# So many steps in a row without a finite gradient are no accident.
MOST_SKIPPED = 10
# The adapter that TRL makes of the trained one, to compare with: a copy of its parameters, before a task begins.
REFERENCE = "ref"


class TaskCallback(TrainerCallback):
    """Lets a Trainer learn one task, and forget none: ``Trainer(..., callbacks=[TaskCallback("tickets")])``.

    Works with `transformers.Trainer`, TRL's ``SFTTrainer`` and others built on them, with checkpoints, several
    processes and ``load_best_model_at_end``. The adapter holds all state, so checkpoints are complete. Training that
    ends with an exception leaves the task open: resume it from a checkpoint, or call ``model.end_task()`` to keep
    what it has learnt so far, or ``model.drop_task()`` to drop it.

    A task of a known name is learnt further. Prompts, for ``set_task(None)``, are what comes before a row's first
    label (see ``model.watch_prompts``).

    Args:
        task: The task's name.
    """

    # What to try where no step has a finite gradient.
    remedy = "try a lower learning_rate, or training without mixed precision"

    def __init__(self, task: str) -> None:
        self.task = task
        self.handles: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the task, or go on with it after a checkpoint; hook the method into the optimiser.

        Raises:
            HimalayaError: Another task is being learnt, the checkpoint is another task's, there is no room, or the
                model has no adapter of HIMALAYA.
        """
        self.model = kwargs["model"]
        self.method = continual(self.model)
        self.start(state)
        optimizer = kwargs["optimizer"]
        self.handles = self.method.protect(getattr(optimizer, "optimizer", optimizer), lambda one: _note(state, one))

    def start(self, state: TrainerState) -> None:
        """Make the adapter ready for the first step of this process."""
        if not isinstance(self.method, HimalayaModel):
            raise HimalayaError(
                f"TaskCallback('{self.task}') needs a model with an adapter of HIMALAYA, as "
                f"get_peft_model(model, HimalayaConfig()) returns; this one is a {type(self.model).__name__}"
            )
        name = normalised(self.task)
        if state.global_step and self.method.open_task != name:
            raise HimalayaError(
                f"the checkpoint was written while the adapter learnt {self.method.open_task or 'no task'}, not "
                f"'{self.task}': resume from a checkpoint of this task, and give each task an output_dir of its own"
            )
        for event in self.method.start_task(name):
            _note(state, event)
        self.method.copy_to(REFERENCE)
        if not state.epoch or state.epoch < 1:  # else a process before this one has seen all prompts
            self.method.watch_prompts()

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
        if getattr(kwargs["optimizer"], "scaler", None) is None:  # which looks at the gradients itself, and skips
            self.model.zero_grad()
        self.method.skip_step()
        _note(state, SkippedStep())
        step = state.global_step + 1
        logger.warning("task %s, step %d: loss or gradient is not finite, step skipped", self.task, step)
        skipped = {event["step"] for event in noted_events(state) if event["event"] == SkippedStep.kind}
        if skipped.issuperset(range(step - MOST_SKIPPED + 1, step + 1)):
            raise HimalayaError(
                f"task '{self.task}': {MOST_SKIPPED} steps in a row had a loss or gradient that is not finite, up to "
                f"step {step}; {self.remedy}"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Unhook, and store the task."""
        for handle in self.handles:
            handle.remove()
        self.end(state)

    def end(self, state: TrainerState) -> None:
        """Store what the task has learnt."""
        for event in self.method.end_task():
            _note(state, event)


def noted_events(state: TrainerState) -> list[dict[str, Any]]:
    """What happened in a task so far, in order: promotions and skipped steps, each with its step's number from 1."""
    return [entry for entry in state.log_history if "event" in entry]


def _note(state: TrainerState, event: Event) -> None:
    state.log_history.append({**event.as_dict(), "step": state.global_step + 1})
