"""One adapter through its life: what it is learning, what it has learnt, and which task it answers as."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.packed_rows import RowFormat
from himalaya_adapter.methods.prompt_memory import PromptMemory
from himalaya_adapter.methods.release import INFERENCE_ONLY
from himalaya_adapter.methods.shared_state import SharedState

from .config import HimalayaConfig
from .consolidation import FisherMemory
from .dictionary import Dictionary
from .growth import Growth
from .tasks import COEFFICIENT_STEP, FROZEN, NO_ROW, TaskTable
from .update import bounded, layer_anchors, layer_codes, scaled, unscaled, update_vectors

logger = logging.getLogger(__name__)
UNNAMED = "unnamed"
# A random adapter, for tests: its atoms are about so long.
RANDOM_NORM = {"residual_stream": 0.5, "weights": 0.1}
# Of the config, beside the core and the atoms.
ANSWERS_DEPEND_ON = ("placement", "rank", "active_atoms", "norm_bound", "seed", "layers", "layers_to_transform")
ROWS = ("names", "numbers", "coefficients", "learnt")  # of the table of tasks
NO_TASK = (
    "no task is being learnt: train inside of `with model.learning(name):`, or give a Trainer "
    "callbacks=[TaskCallback(name)]"
)
Vectors = list[tuple[Tensor, Tensor]]


class HimalayaAdapter(SharedState):
    """Everything that a HIMALAYA adapter stores. Its size depends neither on the layers nor on the tasks.

    The one parameter, ``atoms``, is that of the task being learnt. What earlier tasks have learnt is no parameter:
    nothing that trains can move it.

    Args:
        config: The adapter's, with the number of layers.
        width: Width ``d`` of the atoms.
        embedding_width: Width of the input embeddings; ``None``: the model has none.
    """

    def __init__(self, config: HimalayaConfig, width: int, embedding_width: int | None) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.layers = config.layers or 1
        self.entries = 0  # of all factors together, with placement="weights"
        self.atoms = nn.Parameter(torch.zeros(config.atoms_per_task, width))
        row_format = RowFormat(width, config.quantisation_bits)
        self.dictionary = Dictionary(config.core_atoms, config.elastic_atoms, row_format, config.seed)
        self.tasks = TaskTable(config.max_tasks, config.atoms_per_task)
        self.fisher = FisherMemory(config.elastic_atoms, config.atoms_per_task, width)
        self.router = PromptMemory(embedding_width or width, _row_bits(config.max_tasks), slots=config.max_tasks)
        self.growth = Growth(config, self.dictionary, self.tasks, self.fisher)
        self.codes = layer_codes(self.layers, config.atoms_per_task, config.active_atoms, config.seed)
        # Which row of the table answers each row of a batch; None: the one that `tasks.answers` names, for all.
        self.rows: tuple[int, ...] | None = None
        self.infers_task = False
        self._known_vectors: tuple[Tensor, torch.dtype, Vectors] | None = None
        self._known_atoms: tuple[Any, Tensor] | None = None
        self._pass: Vectors | None = None
        self._anchors: tuple[Any, Tensor] | None = None
        self._warned = False
        if not config.init_weights:
            random = torch.randn(self.atoms.shape, generator=torch.Generator().manual_seed(config.seed + 2))
            self.atoms.data = unscaled(random * RANDOM_NORM[config.placement] / width**0.5)

    # The update ------------------------------------------------------------------------------------------------

    @property
    def anchors(self) -> Tensor:
        """The layers' anchors, ``(L, d)``, in float32."""
        state = _state(self.dictionary.core)
        if self._anchors is None or self._anchors[0] != state:
            # Made once, also for passes that have gradients or another precision.
            with torch.inference_mode(False), torch.no_grad(), _full_precision(self.dictionary.core):
                self._anchors = state, layer_anchors(self.dictionary.core_atoms(), self.layers, self.config.seed)
        return self._anchors[1]

    @property
    def learns(self) -> bool:
        """Whether what answers is what is being learnt."""
        return self.rows is None and not self.infers_task and self.tasks.answering == self.tasks.being_learnt

    @torch.no_grad()
    def task_atoms(self, row: int) -> Tensor:
        """The atoms ``(k, d)`` of a row of the table: of the task being learnt its parameter, else what is stored."""
        if row == FROZEN:
            return torch.zeros_like(self.atoms, dtype=torch.float32)
        if row == self.tasks.being_learnt:
            return scaled(self.atoms.float())
        weights = self.tasks.coefficients[row].float() * COEFFICIENT_STEP
        numbers = self.tasks.numbers[row].long().clamp_min(0)
        there, place = numbers.unique(return_inverse=True)
        return bounded((weights[..., None] * self.dictionary.atoms(there)[place]).sum(1))

    def of_layer(self, number: int, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write and read vector of a layer. The first layer of a pass makes those of all layers."""
        if number == 0 or self._pass is None:
            self._pass = self._vectors(hidden_states)
        found = self._pass[number]
        if torch.is_grad_enabled() and self.atoms.requires_grad and not found[0].requires_grad and self.learns:
            # A layer inside of a reentrant checkpoint runs again, now with a graph, which must be its own.
            return self._vectors(hidden_states)[number]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pass": None}  # the vectors of the last pass belong to its graph

    @torch.compiler.disable
    def _vectors(self, like: Tensor) -> Vectors:
        """Write and read vector of each layer, for the pass that begins with these hidden states ``(b, s, d)``."""
        atoms = self.answering_atoms(len(like))
        if atoms.requires_grad:
            return self._per_layer(atoms, like.dtype)
        known = self._known_vectors
        if known is None or known[0] is not atoms or known[1] != like.dtype:
            with torch.inference_mode(False), torch.no_grad():
                known = self._known_vectors = atoms, like.dtype, self._per_layer(atoms, like.dtype)
        return known[2]

    def answering_atoms(self, batch: int, first: bool = True) -> Tensor:
        """The atoms that answer now; the same tensor as long as they are the same and nothing learns.

        Args:
            batch: Rows of the batch.
            first: Whether a pass begins, which is when it is checked that training is allowed.

        Returns:
            ``(k, d)``; ``(batch, k, d)`` where rows are answered as different tasks.

        Raises:
            HimalayaError: The adapter is trained outside of a task, or as a release; or `set_task` was given another
                number of tasks.
        """
        if torch.is_grad_enabled() and self.atoms.requires_grad:
            if self.training and first:
                self._check_training()
            if self.learns:
                return scaled(self.atoms.float())
        rows = (self.tasks.answering,) if self.rows is None else self.rows
        if len({*rows}) == 1:
            rows = rows[:1]
        else:
            each, left = divmod(batch, len(rows))  # beams of a row lie side by side
            if left or not each:
                raise HimalayaError(f"set_task was given {len(rows)} tasks, the batch has {batch} rows")
            rows = tuple(row for row in rows for _ in range(each))
        key = rows, *self._state()
        # Some optimisers' steps do not count as changes of a tensor.
        moves = first and self.atoms.requires_grad and self.tasks.being_learnt in rows
        if self._known_atoms is None or self._known_atoms[0] != key or moves:
            with torch.inference_mode(False), torch.no_grad():
                each_task = {row: self.task_atoms(row) for row in {*rows}}
                stacked = torch.stack([each_task[row] for row in rows])
                self._known_atoms = key, stacked[0] if len(rows) == 1 else stacked
        return self._known_atoms[1]

    def _state(self) -> tuple[tuple[int, int], ...]:
        """Changes whenever anything changes that a task's atoms depend on."""
        tasks, dictionary = self.tasks, self.dictionary
        return _state(
            self.atoms, dictionary.core, dictionary.elastic, tasks.numbers, tasks.coefficients, tasks.open_row
        )

    def _per_layer(self, atoms: Tensor, dtype: torch.dtype) -> Vectors:
        with _full_precision(atoms):
            write, read = update_vectors(self.anchors, self.codes.to(atoms), atoms, self.config.norm_bound)
        write, read = write.to(dtype), read.to(dtype)
        if atoms.dim() == 3:  # a row of the batch, a token, an entry
            write = write[:, :, None]
        return list(zip(write.unbind(-2 if atoms.dim() == 2 else 1), read[..., None].unbind(-3), strict=True))

    def _check_training(self) -> None:
        if self.packed is not None:
            raise HimalayaError(INFERENCE_ONLY)
        is_open = self.tasks.being_learnt != NO_ROW
        if is_open and not self.learns:
            raise HimalayaError(
                f"task '{self.open_task}' is being learnt, but the adapter answers as another one: before you train "
                f"on, call model.set_task('{self.open_task}')"
            )
        if not is_open and (not self.learns or self.tasks.learnt.any()):
            raise HimalayaError(NO_TASK)
        if not is_open and not self._warned:
            self._warned = True
            logger.warning(
                "the adapter is trained outside of a task, and what it learns is stored as '%s': train inside of "
                "`with model.learning(name):`, or give a Trainer callbacks=[TaskCallback(name)]",
                UNNAMED,
            )
        # Whoever takes the optimiser's steps: atoms that have left the ball are put back before they are used again.
        with torch.no_grad():
            inside = unscaled(scaled(self.atoms))
            if (self.atoms - inside).abs().max() > 1e-6 * self.atoms.abs().max():
                self.atoms.copy_(inside)

    # The life of a task ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def start_task(self, name: str) -> list[Event]:
        """Begin to learn a task, new or known; one that is being learnt ends first.

        Raises:
            HimalayaError: No room, a name that cannot be stored, or an adapter for inference. Nothing is changed.
        """
        if self.packed is not None:
            raise HimalayaError(INFERENCE_ONLY)
        if not self.atoms.requires_grad:
            raise HimalayaError("the adapter was loaded for inference: load it with is_trainable=True to train it")
        row, ending = self.tasks.find(name), self.tasks.being_learnt
        broken = not self.atoms.isfinite().all()
        if row is not None and row == ending and not broken:
            return []
        again = broken and ending in (row, NO_ROW)  # what cannot be stored begins anew
        unnamed = ending == NO_ROW and bool(self.atoms.any()) and not again
        if row is None:
            self.tasks.free_row(name, besides=int(unnamed))
        self.growth.check_room(row, None if again or (ending == NO_ROW and not unnamed) else ending)
        events = [] if again else self.end_task()
        row = self.tasks.open(name)
        known = bool(self.tasks.learnt[row])
        self.tasks.open_row.fill_(NO_ROW)
        begin = self.task_atoms(row) if known else torch.zeros_like(self.atoms)
        self.atoms.copy_(unscaled(begin))
        self.tasks.open_row.fill_(row)
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
        if self.tasks.being_learnt == NO_ROW and not self.atoms.any():
            return []
        atoms = scaled(self.atoms.float())
        if not atoms.isfinite().all():
            raise HimalayaError("the task's atoms are not finite: start it again with a lower learning rate")
        row = self.tasks.open(UNNAMED) if self.tasks.being_learnt == NO_ROW else self.tasks.being_learnt
        events = self.growth.store(row, atoms)
        self.router.learn(_row_code(row, self.config.max_tasks).to(self.atoms.device))
        self._close()
        self.answer_as(row)
        return events

    @torch.no_grad()
    def forget_task(self, name: str) -> None:
        """Remove a task: its row, the slots that no other task uses, and what the memory of prompts knows of it.

        Raises:
            HimalayaError: It is not known, another one is being learnt, or a release. Nothing is changed.
        """
        if self.packed is not None:
            raise HimalayaError(INFERENCE_ONLY)
        row = self.tasks.row_of(name)
        if self.tasks.being_learnt == row:
            self._close()
        elif self.open_task is not None:
            raise HimalayaError(f"task '{self.open_task}' is being learnt: end it before you forget task '{name}'")
        self.growth.remove(row)
        self.router.remove(_row_code(row, self.config.max_tasks).to(self.atoms.device))
        self.fisher.forget()
        none_left = not self.tasks.learnt.any()
        if self.rows is not None:
            self.rows = tuple(FROZEN if one == row else one for one in self.rows)
        if none_left or self.tasks.answering == row:
            self.tasks.answers.fill_(NO_ROW if none_left else FROZEN)

    def _close(self) -> None:
        """No task is being learnt any more; an optimiser's step that comes late finds no gradient."""
        self.tasks.open_row.fill_(NO_ROW)
        self.atoms.zero_()
        self.atoms.grad = None
        self.router.task_moment.zero_()
        self._warned = False

    @property
    def open_task(self) -> str | None:
        """Name of the task that is being learnt."""
        row = self.tasks.being_learnt
        return None if row == NO_ROW else self.tasks.name(row)

    def check_replacement(self, state: Mapping[str, Tensor]) -> None:
        """Refuse to load what lacks a task that this adapter has learnt, or holds another version of it.

        A fresh state is no accident, and neither is one in which that very task is being learnt.

        Raises:
            HimalayaError: As said.
        """
        if self.atoms.is_meta or not (state["tasks.learnt"].any() or state["tasks.open_row"] != NO_ROW):
            return
        elastic = state["dictionary.elastic"].to(self.atoms.device)
        moved = self.growth.first_slot + (elastic != self.dictionary.elastic).any(1).nonzero()
        for row in self.tasks.learnt.nonzero().flatten().tolist():
            rows = [(state[f"tasks.{name}"][row], getattr(self.tasks, name)[row]) for name in ROWS]
            same = [torch.equal(theirs.to(own.device), own) for theirs, own in rows]
            its_own = same[0] and state["tasks.open_row"] == row
            if not its_own and not (all(same) and not torch.isin(self.tasks.numbers[row].long(), moved).any()):
                raise HimalayaError(
                    f"task '{self.tasks.name(row)}', which this adapter has learnt, is not in the file as it is here: "
                    "load the file as an adapter of another name, or delete this one first"
                )

    def snapshot(self) -> tuple[Any, ...]:
        """A copy of all that `restore` puts back."""
        return {name: tensor.clone() for name, tensor in self.state_dict().items()}, self.rows, self.infers_task

    def restore(self, state: tuple[Any, ...]) -> None:
        """Be as at the time of a `snapshot`."""
        tensors, self.rows, self.infers_task = state
        self.load_state_dict(tensors)
        self.atoms.grad = None

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

    # Prompts ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe_prompts(self, embeddings: Tensor, mask: Tensor) -> None:
        """Remember what prompts of the current task look like: input embeddings ``(b, s, d)``, mask ``(b, s)``."""
        self.router.observe_prompts(embeddings, mask)

    def gather_prompts(self) -> bool:
        """Put together what all processes have observed of the open task's prompts; whether there is anything."""
        return self.router.gather()

    def recognise(self, embeddings: Tensor, mask: Tensor) -> tuple[list[int], list[float]]:
        """Row of the task that each prompt looks like, and a confidence; below 1 it looks like none, `FROZEN`."""
        if int(self.router.tasks) == 0:
            return [FROZEN] * len(embeddings), [0.0] * len(embeddings)
        codes, confidences = self.router.infer(self.router.features(embeddings, mask))
        place = 2 ** torch.arange(codes.shape[1], device=codes.device)
        confidences = confidences.where(mask.any(1), 0.0)
        return ((codes > 0) * place).sum(1).where(confidences == 1, FROZEN).tolist(), confidences.tolist()

    def read_prompts(self, embeddings: Tensor, mask: Tensor) -> None:
        """Answer each row, until the next prompts, as the task that its prompt looks like."""
        self.rows = tuple(self.recognise(embeddings, mask)[0])

    # What is reported ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def norm_certificate(self) -> dict[str, float]:
        """The largest norms over all tasks: of an atom, and of a layer's update where that is bounded."""
        rows = {self.tasks.being_learnt, *self.tasks.learnt.nonzero().flatten().tolist()}
        atoms = torch.stack([self.task_atoms(row) for row in rows])
        norms = {"atom_norm_max": atoms.norm(dim=-1).max().item()}
        if self.config.placement == "residual_stream":
            write, read = update_vectors(self.anchors, self.codes.to(atoms), atoms, self.config.norm_bound)
            norms["update_norm_max"] = (write.norm(dim=-1) * read.norm(dim=-1)).max().item()
        return norms

    def task_statistics(self) -> dict[str, Any]:
        """How much room is left."""
        return {"free_atoms": len(self.growth.free_slots()), "active_atoms": self.config.active_atoms}

    def task_hash(self, name: str) -> str:
        """SHA-256 of all that a task's answers depend on beside the frozen model: the same as long as they are."""
        atoms = self.task_atoms(self.tasks.row_of(name))
        config = {field: getattr(self.config, field) for field in ANSWERS_DEPEND_ON}
        targets = self.config.target_modules
        config["target_modules"] = sorted(targets) if isinstance(targets, set) else targets
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for tensor in (self.anchors, atoms):
            digest.update(tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()


def _state(*tensors: Tensor) -> tuple[tuple[int, int], ...]:
    return tuple((id(one), one._version) for one in tensors)


def _full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Without mixed precision: what is kept for later passes must not depend on the pass that needed it first."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def _row_bits(rows: int) -> int:
    return max(1, (rows - 1).bit_length())


def _row_code(row: int, rows: int) -> Tensor:
    """A row's number in binary as signs, which is how the memory of prompts tells rows apart."""
    bits = _row_bits(rows)
    return ((row >> torch.arange(bits)) & 1) * 2.0 - 1.0
