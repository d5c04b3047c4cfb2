"""What a stream asks of a method: the verbs, with what a method does that has nothing to say to them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from himalaya_adapter.errors import HimalayaError

from .events import Event


class ContinualModel:
    """The verbs of a stream, in the order in which a runner uses them; each does nothing here.

    A tuner inherits this class and overrides what it has to say something to; its verbs act on the active adapters
    and can be called on the `PeftModel` itself. `continual` gives the verbs of any PEFT model.
    """

    # Learns each task under its name, and so cannot mix tasks (the protocol `joint`).
    separates_tasks: ClassVar[bool] = False
    # Answers as one task at a time: `set_task` changes the answers.
    switches_tasks: ClassVar[bool] = False
    # Can tell a task from a prompt: `infer_task`, and `set_task(None)`.
    recognises_tasks: ClassVar[bool] = False

    # Learning --------------------------------------------------------------------------------------------------

    def start_task(self, name: str, examples: Mapping[str, Any] | None = None) -> list[Event]:
        """Begin to learn a task.

        Args:
            name: The task's name.
            examples: Model inputs with labels (``input_ids``, ``attention_mask``, ``labels``, ...) of a few of its
                items.

        Returns:
            What happened to make room for it.
        """
        return []

    def observe_prompts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Take note of prompts of the open task, before its first step.

        Args:
            input_ids: Prompts without their answers, ``(batch, length)``.
            attention_mask: 0 at padding; without it all tokens count.
        """

    def protect(
        self, optimizer: torch.optim.Optimizer, on_event: Callable[[Event], None] | None = None
    ) -> list[RemovableHandle]:
        """Watch an optimiser's steps, and keep earlier tasks out of them.

        Args:
            optimizer: The one that trains the adapter.
            on_event: Called with what happens inside the task.

        Returns:
            Handles; ``remove()`` them when the task has been learnt.
        """
        return []

    def anneal(self, progress: float) -> None:
        """Called before each step, with the share of the task's steps that are done, in [0, 1]."""

    def penalty(self) -> Tensor:
        """What is added to the loss of a step, once: a scalar."""
        return torch.zeros(())

    def skip_step(self) -> None:
        """Forget what was seen for a step that is not taken, because its gradient is not finite."""

    def end_task(self) -> list[Event]:
        """Store the task that is being learnt; returns what happened then."""
        return []

    def forget_task(self, name: str) -> None:
        """Take back what was learnt of one task, and leave all others as they are.

        Raises:
            HimalayaError: The method cannot, or there is no such task.
        """
        raise HimalayaError(f"task '{name}' cannot be forgotten alone: in this method tasks share what they learn")

    # Answering -------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that have been learnt, if the adapter keeps them."""
        return []

    def set_task(self, name: str | None) -> None:
        """Answer as a task from now on; ``None``: as the one that each prompt looks like."""

    def infer_task(
        self, input_ids: Tensor, names: Sequence[str], attention_mask: Tensor | None = None
    ) -> list[tuple[str | None, float]]:
        """Say which task prompts look like.

        Args:
            input_ids: ``(batch, length)``.
            names: The tasks that may be named.
            attention_mask: 0 at padding; without it all tokens count.

        Returns:
            For each prompt the name, or ``None`` if the task found is not among the names, and a confidence in [0, 1].

        Raises:
            HimalayaError: The method cannot.
        """
        raise HimalayaError("this method cannot tell a task from its prompt")

    def remembers_task(self, name: str) -> bool:
        """Whether `set_task` finds what was learnt under this name."""
        return True

    # What is reported ------------------------------------------------------------------------------------------

    def task_hash(self, name: str) -> str | None:
        """A hash of all that answers as a task; ``None``: the whole adapter does."""
        return None

    def stored_bytes(self) -> dict[str, int]:
        """Bytes by part; without any, an adapter's file is one part."""
        return {}

    def norm_certificate(self) -> dict[str, float]:
        """The largest norms, by name, of what the method bounds."""
        return {}

    def task_statistics(self) -> dict[str, Any]:
        """What is worth knowing of the task that has just ended, and of the room that is left."""
        return {}


def continual(model: PeftModel) -> ContinualModel:
    """The verbs of a PEFT model: those of its own tuner, or, for a method that has none, those that do nothing."""
    tuner = model.base_model
    return tuner if isinstance(tuner, ContinualModel) else ContinualModel()
