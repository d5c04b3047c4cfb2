"""What happens around the optimiser's steps of a task. The callback holds no state that a checkpoint would need."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from himalaya_adapter.training.run_store import mark_complete


class StreamCallback(TrainerCallback):
    """Lets a continual method anneal and protect, and marks each checkpoint once it is whole.

    Args:
        model: The PEFT model; methods without ``protect`` and ``anneal`` are trained as they are.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.handles: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook the method into the optimiser."""
        if hasattr(self.model, "protect"):
            optimizer = kwargs["optimizer"]
            self.handles = self.model.protect(getattr(optimizer, "optimizer", optimizer))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the temperature from the step's number, so that a resumed task goes on with the same one."""
        if hasattr(self.model, "anneal"):
            self.model.anneal(state.global_step / state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as whole: everything else of it has been written by now."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            mark_complete(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Unhook."""
        for handle in self.handles:
            handle.remove()
