"""One adapter through its life: what it is learning, what it has learnt, and what it forgets."""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event

from .answering import Answering
from .config import HimalayaConfig
from .consolidation import FisherMemory
from .growth import Growth
from .kept import Kept
from .tasks import FROZEN, NO_ROW
from .update import bounded, scaled, unscaled

logger = logging.getLogger(__name__)
UNNAMED = "unnamed"
HOW_TO_TRAIN = "inside of `with model.learning(name):`, or give a Trainer callbacks=[TaskCallback(name)]"


class HimalayaAdapter(Answering):
    """Everything that a HIMALAYA adapter stores: what answers, and what only learning needs.

    Its size depends neither on the layers nor on the tasks.

    Args:
        config: The adapter's, with the number of layers.
        width: Width ``d`` of the atoms.
        embedding_width: Width of the input embeddings; ``None``: the model has none.
    """

    def __init__(self, config: HimalayaConfig, width: int, embedding_width: int | None) -> None:
        super().__init__(config, width, embedding_width)
        self.fisher = FisherMemory(config.elastic_atoms, config.atoms_per_task, width)
        self.growth = Growth(config, self.dictionary, self.tasks, self.fisher)
        self._warned = False
        self._knows_channels: Kept[bool] = Kept()

    @property
    def is_blank(self) -> bool:
        """Whether nothing is known of the channels' sizes, and nothing has been learnt without them."""
        known = self._knows_channels.get(lambda: bool(self.channels.any()), self.channels)
        return not (known or self.atoms.any() or self.tasks.learnt.any())

    @torch.no_grad()
    def start_task(self, name: str) -> list[Event]:
        """Begin to learn a task, new or known; one that is being learnt ends first.

        Raises:
            HimalayaError: No room, a name that cannot be stored, or an adapter for inference. Nothing is changed.
        """
        self.refuse_if_released()
        if not self.atoms.requires_grad:
            raise HimalayaError("the adapter was loaded for inference: load it with is_trainable=True to train it")
        row, ending = self.tasks.find(name), self.tasks.being_learnt
        broken = not self.atoms.isfinite().all()
        if row is not None and row == ending and not broken:
            return []
        with self.unchanged_by_errors():
            # What cannot be stored can only begin anew.
            events = [] if broken and ending in (row, NO_ROW) else self.end_task()
            row = self.tasks.open(name)
            self.growth.check_room(row)
            self.atoms.copy_(unscaled(bounded(self.tasks.atoms(row, self.dictionary))))
            self.answer_as(row)
            self.fisher.energy.zero_()
            self.router.task_moment.zero_()
        return events

    @torch.no_grad()
    def end_task(self) -> list[Event]:
        """Store the task that is being learnt, rounded; what was learnt outside of a task is stored as one.

        Returns:
            What was shared and what was evicted; nothing if there is nothing to store.
        """
        row = self.tasks.being_learnt
        if row == NO_ROW and not self.atoms.any():
            return []
        atoms = scaled(self.atoms.float())
        if not atoms.isfinite().all():
            raise HimalayaError("the task's atoms are not finite: start it again with a lower learning rate")
        row = self.tasks.open(UNNAMED) if row == NO_ROW else row
        events = self.growth.store(row, atoms)
        self.router.learn(self.tasks.code(row))
        self._close()
        self.answer_as(row)
        return events

    @torch.no_grad()
    def forget_task(self, name: str) -> None:
        """Remove a task: its row, the slots that no other task uses, and what the memory of prompts knows of it.

        Raises:
            HimalayaError: It is not known, another one is being learnt, or a release. Nothing is changed.
        """
        self.refuse_if_released()
        row = self.tasks.row_of(name)
        if self.tasks.being_learnt == row:
            self._close()
        elif self.open_task is not None:
            raise HimalayaError(f"task '{self.open_task}' is being learnt: end it before you forget task '{name}'")
        self.growth.remove(row)
        self.router.remove(self.tasks.code(row))
        self.fisher.forget()
        none_left = not self.tasks.learnt.any()
        if self.rows is not None:
            self.rows = tuple(FROZEN if one == row else one for one in self.rows)
        if none_left or self.tasks.answering == row:
            self.tasks.answers.fill_(NO_ROW if none_left else FROZEN)

    def check_training(self) -> None:
        """Make sure that what is trained is the open task, and that its atoms are in the unit ball.

        Raises:
            HimalayaError: Another task answers, none is open but some are learnt, or the adapter is a release.
        """
        self.refuse_if_released()
        is_open = self.tasks.being_learnt != NO_ROW
        if is_open and not self.learns:
            raise HimalayaError(
                f"task '{self.open_task}' is being learnt, but the adapter answers as another one: before you train "
                f"on, call model.set_task('{self.open_task}')"
            )
        if not is_open and (not self.learns or self.tasks.learnt.any()):
            raise HimalayaError(f"no task is being learnt: train {HOW_TO_TRAIN}")
        if not is_open and not self._warned:
            self._warned = True
            message = "the adapter is trained outside of a task, and what it learns is stored as '%s': train %s"
            logger.warning(message, UNNAMED, HOW_TO_TRAIN)
        # Whoever takes the optimiser's steps: atoms that have left the ball are put back before they are used again.
        with torch.no_grad():
            inside = unscaled(scaled(self.atoms))
            if (self.atoms - inside).abs().max() > 1e-6 * self.atoms.abs().max():
                self.atoms.copy_(inside)

    def _close(self) -> None:
        """No task is being learnt any more; an optimiser's step that comes late finds no gradient."""
        self.tasks.open_row.fill_(NO_ROW)
        self.atoms.zero_()
        self.atoms.grad = None
        self.router.task_moment.zero_()
        self._warned = False

    @contextmanager
    def unchanged_by_errors(self) -> Iterator[None]:
        """A block after whose exception the adapter is as before it."""
        before, rows, infers_task = copy.deepcopy(self.state_dict()), self.rows, self.infers_task
        try:
            yield
        except BaseException:
            self.load_state_dict(before)
            self.rows, self.infers_task = rows, infers_task
            self.atoms.grad = None
            raise

    def check_replacement(self, state: Mapping[str, Tensor]) -> None:
        """Refuse to load what lacks a task that this adapter has learnt, or holds another version of it.

        A fresh state is no accident, and neither is one in which that very task is being learnt.

        Raises:
            HimalayaError: As said.
        """
        if self.atoms.is_meta or not self.tasks.learnt.any():
            return
        other = copy.deepcopy(self)
        other.load_state_dict(state)
        theirs, mine = (
            {name: one.tasks.atoms(one.tasks.row_of(name), one.dictionary) for name in one.tasks.known()}
            for one in (other, self)
        )
        if not theirs and other.open_task is None:
            return
        for name, atoms in mine.items():
            if name != other.open_task and not (name in theirs and torch.equal(theirs[name], atoms)):
                raise HimalayaError(
                    f"task '{name}', which this adapter has learnt, is not in the file as it is here: load the file "
                    "as an adapter of another name, or delete this one first"
                )

    def task_statistics(self) -> dict[str, Any]:
        """How much room is left."""
        return {"free_atoms": len(self.growth.free_slots()), "active_atoms": self.config.active_atoms}
