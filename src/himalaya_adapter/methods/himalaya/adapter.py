"""One adapter: whose atoms answer, the vectors that layers make of them, and what it learns, keeps and forgets."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.kept import Kept
from himalaya_adapter.methods.packed_rows import RowFormat
from himalaya_adapter.methods.release import CHECKSUM, seal
from himalaya_adapter.methods.shared_state import SharedState
from himalaya_adapter.methods.task_inference.gaussians import GaussianMemory
from himalaya_adapter.names import normalised

from .config import HimalayaConfig
from .consolidation import FisherMemory
from .dictionary import Dictionary
from .growth import Growth
from .tasks import FROZEN, NO_ROW, TaskTable
from .update import AnchoredUpdate, Vectors, bounded, scaled, unscaled

logger = logging.getLogger(__name__)
UNNAMED = "unnamed"
HOW_TO_TRAIN = "inside of `with model.learning(name):`, or give a Trainer callbacks=[TaskCallback(name)]"
# A random adapter, for tests: its atoms are about so long.
RANDOM_NORM = {"residual_stream": 0.5, "weights": 0.1}


class HimalayaAdapter(SharedState):
    """Everything that a HIMALAYA adapter stores. Its size depends neither on the layers nor on the tasks.

    The one parameter, ``atoms``, is that of the task being learnt. What earlier tasks have learnt is no parameter:
    nothing that trains can move it.

    Args:
        config: The adapter's, with the number of layers.
        width: Width ``d`` of the atoms.
    """

    beside_tensors = ("rows", "infers_task")

    def __init__(self, config: HimalayaConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.attached = 0  # layers so far
        self.entries = 0  # of all factors together, with placement="weights"
        self.atoms = nn.Parameter(torch.zeros(config.atoms_per_task, width))
        if not config.init_weights:
            random = torch.randn(self.atoms.shape, generator=torch.Generator().manual_seed(config.seed + 2))
            self.atoms = nn.Parameter(unscaled(random * RANDOM_NORM[config.placement] / width**0.5))
        self.channels: Tensor = nn.Buffer(torch.zeros(width, dtype=torch.int8))
        row_format = RowFormat(width, config.quantisation_bits)
        self.dictionary = Dictionary(config.core_atoms, config.elastic_atoms, row_format, config.seed)
        self.tasks = TaskTable(config.max_tasks, config.atoms_per_task)
        self.fisher = FisherMemory(config, width) if config.evict else None
        self.update = AnchoredUpdate(config, config.layers or 1, self.dictionary)
        self.growth = Growth(config, self.dictionary, self.tasks, self.fisher)
        self.router = GaussianMemory(width, config.max_tasks)
        # Which row of the table answers each row of a batch; None: the one that `tasks.answers` names, for all.
        self.rows: tuple[int, ...] | None = None
        self.infers_task = False
        self._warned = False
        self._atoms: Kept[Tensor] = Kept()
        self._pass: Vectors | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pass": None}  # the vectors of the last pass belong to its graph

    # Which task ------------------------------------------------------------------------------------------------

    @property
    def open_task(self) -> str | None:
        """Name of the task that is being learnt."""
        row = self.tasks.being_learnt
        return None if row == NO_ROW else self.tasks.name(row)

    @property
    def trains(self) -> bool:
        """Whether the pass that runs is one of training."""
        return self.training and self.atoms.requires_grad and torch.is_grad_enabled()

    def answer_as(self, row: int) -> None:
        """Answer all prompts as the task of a row."""
        self.tasks.answers.fill_(row)
        self.rows, self.infers_task = None, False

    def set_task(self, name: str | Sequence[str | None] | None) -> None:
        """Answer as one task; as one for each row of a batch; or as the one that each prompt looks like (``None``).

        Raises:
            HimalayaError: A task that is not known.
        """
        if isinstance(name, str):
            self.answer_as(self.tasks.row_of(name))
        elif name is None:
            self.infers_task, self.rows = True, None
        else:
            rows = tuple(FROZEN if one is None else self.tasks.row_of(one) for one in name)
            if not rows:
                raise HimalayaError("set_task was given no task: name one, or one for each row of the batch")
            self.infers_task, self.rows = False, rows

    @property
    def prompt_memory(self) -> GaussianMemory:
        """What tells a prompt's task."""
        return self.router

    def infer_task(self, states: Tensor, mask: Tensor, names: Sequence[str] | None) -> list[tuple[str | None, float]]:
        """The task that each prompt looks like, ``None`` if it is not among ``names``, and a confidence."""
        allowed = {normalised(name): name for name in (self.tasks.known() if names is None else names)}
        found = self.router.recognise(states, mask)
        return [(None if row is None else allowed.get(self.tasks.name(row)), sure) for row, sure in found]

    def read_prompts(self, states: Tensor, mask: Tensor) -> None:
        """Answer each row, until the next prompts, as the task that its prompt looks like."""
        self.rows = tuple(FROZEN if row is None else row for row, _ in self.router.recognise(states, mask))

    # The life of a task ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def start_task(self, name: str) -> list[Event]:
        """Begin to learn a task, new or known, or go on with it. What was learnt outside of a task is stored first.

        Raises:
            HimalayaError: Another task is being learnt, no room, a name that cannot be stored, or an adapter for
                inference.
        """
        self.refuse_if_released()
        if not self.atoms.requires_grad:
            raise HimalayaError("the adapter was loaded for inference: load it with is_trainable=True to train it")
        other, events = self.open_task, list[Event]()
        if other not in (None, normalised(name)):
            raise HimalayaError(
                f"task '{other}' is being learnt: before task '{name}' begins, model.end_task() keeps what it has "
                "learnt so far, model.drop_task() drops that"
            )
        if self.atoms.isfinite().all():  # else it can only begin anew
            if other is not None:
                return []
            events = self.end_task()
        self.growth.check_room(self.tasks.find(name))
        row = self.tasks.open(name)
        self.atoms.copy_(unscaled(bounded(self.tasks.atoms(row, self.dictionary))))
        self.answer_as(row)
        self.router.task_moment.zero_()
        if self.fisher is not None:
            self.fisher.energy.zero_()
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
        self.router.learn(row)
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
        self.router.remove(row)
        if self.tasks.answering == row:
            self.tasks.answers.fill_(NO_ROW)

    @torch.no_grad()
    def drop_task(self) -> None:
        """Drop what the open task has learnt since it began: a known task is as it was, a new one is gone."""
        row = self.tasks.being_learnt
        if row != NO_ROW and self.tasks.learnt[row]:
            self._close()
            self.answer_as(row)
        elif row != NO_ROW:
            self.forget_task(self.tasks.name(row))

    def _close(self) -> None:
        """No task is being learnt any more; an optimiser's step that comes late finds no gradient."""
        self.tasks.open_row.fill_(NO_ROW)
        self.atoms.zero_()
        self.atoms.grad = None
        self.router.task_moment.zero_()

    def check_training(self) -> None:
        """Make sure that what is trained is the open task, and that its atoms are in the unit ball.

        Raises:
            HimalayaError: Another task answers, none is open but some are learnt, or the adapter is a release.
        """
        self.refuse_if_released()
        name = self.open_task
        learns = self.rows is None and not self.infers_task and self.tasks.answering == self.tasks.being_learnt
        if name is not None and not learns:
            raise HimalayaError(
                f"task '{name}' is being learnt, but the adapter answers as another one: before you train on, "
                f"call model.set_task('{name}')"
            )
        if name is None and (not learns or self.tasks.learnt.any()):
            raise HimalayaError(f"no task is being learnt: train {HOW_TO_TRAIN}")
        if name is None and not self._warned:
            self._warned = True
            message = "the adapter is trained outside of a task, and what it learns is stored as '%s': train %s"
            logger.warning(message, UNNAMED, HOW_TO_TRAIN)
        # Whoever takes the optimiser's steps: atoms that have left the ball are put back before they are used again.
        with torch.no_grad():
            inside = unscaled(scaled(self.atoms))
            if (self.atoms - inside).abs().max() > 1e-6 * self.atoms.abs().max():
                self.atoms.copy_(inside)

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
        theirs = {name: other.task_hash(name) for name in (*other.tasks.known(), other.open_task) if name is not None}
        for name in self.tasks.known() if theirs else ():
            if name != other.open_task and theirs.get(name) != self.task_hash(name):
                raise HimalayaError(
                    f"task '{name}', which this adapter has learnt, is not in the file as it is here: load the file "
                    "as an adapter of another name, or delete this one first"
                )

    # Its atoms -------------------------------------------------------------------------------------------------

    def task_atoms(self, row: int) -> Tensor:
        """The atoms ``(k, d)`` of a row of the table: of the task being learnt its parameter, else what is stored."""
        if row == FROZEN:
            return torch.zeros_like(self.atoms, dtype=torch.float32)
        if row == self.tasks.being_learnt:
            return scaled(self.atoms.float())
        return bounded(self.tasks.atoms(row, self.dictionary))

    def answering_atoms(self, batch: int, first: bool = True) -> Tensor:
        """The atoms that answer now; the same tensor as long as they are the same, unless they are trained.

        Args:
            batch: Rows of the batch.
            first: Whether a pass begins, which is when it is checked that training is allowed.

        Returns:
            ``(k, d)``; ``(batch, k, d)`` where rows are answered as different tasks.

        Raises:
            HimalayaError: The adapter is trained outside of a task, or as a release; `set_task` was given another
                number of tasks; or the prompt is to choose the task, and none was read.
        """
        if first and self.trains:
            self.check_training()
        if self.infers_task and self.rows is None:
            raise HimalayaError(
                "no prompt has been seen since set_task(None), as where its beginning is in a cache already: name the "
                "task, or begin without the cache"
            )
        tasks, dictionary = self.tasks, self.dictionary
        rows = (tasks.answering,) if self.rows is None else self.rows
        each, left = divmod(batch, len(rows))  # beams of a row lie side by side
        if len({*rows}) == 1:
            rows = rows[:1]
        elif left or not each or (each > 1 and self.generates != len(rows)):
            raise HimalayaError(
                f"set_task was given {len(rows)} tasks, the batch has {batch} rows; one task is needed for a merge, "
                "and for a module that is given tokens without their rows"
            )
        else:
            rows = tuple(row for row in rows for _ in range(each))

        def stacked() -> Tensor:
            each = {row: self.task_atoms(row) for row in {*rows}}
            return torch.stack([each[row] for row in rows]) if len(rows) > 1 else each[rows[0]]

        if self.atoms.requires_grad and tasks.being_learnt in rows:
            return stacked()  # some optimisers' steps do not count as changes of a tensor
        sources = self.atoms, dictionary.core, dictionary.elastic, tasks.numbers, tasks.coefficients, tasks.open_row
        return self._atoms.get(stacked, *sources, given=rows)

    # The layers' vectors ---------------------------------------------------------------------------------------

    def of_layer(self, number: int, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write and read vector of a layer, as `edited` takes them. A pass's first layer makes those of all layers."""
        if number == 0 or self._pass is None:
            self._pass = self.of_pass(hidden_states)
        found = self._pass[number]
        if self.trains and not found[0].requires_grad:
            # A layer inside of a reentrant checkpoint runs again, now with a graph, which must be its own.
            return self.of_pass(hidden_states)[number]
        return found

    @torch.compiler.disable
    def of_pass(self, states: Tensor) -> Vectors:
        """Those of each layer, for the pass that begins with these hidden states ``(..., b, s, d)`` or ``(n, d)``."""
        return self.update.each_layer(self.answering_atoms(states.shape[-3:][0]), self.channels, states.dtype)

    # What is reported ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def norm_certificate(self) -> dict[str, float]:
        """The largest norms over all tasks: of an atom, and of a layer's update in units of the channels' sizes."""
        rows = {self.tasks.being_learnt, *self.tasks.learnt.nonzero().flatten().tolist()}
        atoms = torch.stack([self.task_atoms(row) for row in rows])
        norms = {"atom_norm_max": atoms.norm(dim=-1).max().item()}
        if self.config.placement == "residual_stream":
            write, read = self.update.vectors(atoms)
            norms["update_norm_max"] = (write.norm(dim=-1) * read.norm(dim=-1)).max().item()
        return norms

    @torch.no_grad()
    def task_hash(self, name: str) -> str:
        """SHA-256 of the config and of all that is stored of a task; what is being learnt is not yet."""
        atoms = bounded(self.tasks.atoms(self.tasks.row_of(name), self.dictionary))
        content = {"anchors": self.update.anchors, "channels": self.channels, "atoms": atoms}
        return bytes(seal(content, replace(self.config, released=False))[CHECKSUM].tolist()).hex()

    def task_statistics(self) -> dict[str, Any]:
        """How much room is left."""
        return {"free_atoms": len(self.growth.free_slots()), "active_atoms": self.config.active_atoms}
