"""What answers: the tasks' atoms, whose of them act now, and the two vectors that each layer makes of them."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.packed_rows import RowFormat
from himalaya_adapter.methods.prompt_memory import PromptMemory
from himalaya_adapter.methods.shared_state import SharedState

from .channels import sizes_of
from .config import HimalayaConfig
from .dictionary import Dictionary
from .kept import Kept, full_precision
from .tasks import FROZEN, NO_ROW, TaskTable
from .update import bounded, layer_anchors, layer_codes, scaled, unscaled, update_vectors

# A random adapter, for tests: its atoms are about so long.
RANDOM_NORM = {"residual_stream": 0.5, "weights": 0.1}
# Of the config, beside the core and the atoms.
ANSWERS_DEPEND_ON = ("placement", "rank", "active_atoms", "norm_bound", "seed", "layers", "layers_to_transform")
Vectors = list[tuple[Tensor, Tensor]]


class Answering(SharedState):
    """All that an adapter answers with, which is what a release file holds, and the parameter that trains.

    The one parameter, ``atoms``, is that of the task being learnt. What earlier tasks have learnt is no parameter:
    nothing that trains can move it.

    Args:
        config: The adapter's, with the number of layers.
        width: Width ``d`` of the atoms.
        embedding_width: Width of the input embeddings; ``None``: the model has none.
    """

    channels: Tensor

    def __init__(self, config: HimalayaConfig, width: int, embedding_width: int | None) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.layers = config.layers or 1
        self.entries = 0  # of all factors together, with placement="weights"
        self.atoms = nn.Parameter(torch.zeros(config.atoms_per_task, width))
        self.register_buffer("channels", torch.zeros(width, dtype=torch.int8))
        row_format = RowFormat(width, config.quantisation_bits)
        self.dictionary = Dictionary(config.core_atoms, config.elastic_atoms, row_format, config.seed)
        self.tasks = TaskTable(config.max_tasks, config.atoms_per_task)
        self.router = PromptMemory(embedding_width or width, self.tasks.row_bits, slots=config.max_tasks)
        self.codes = layer_codes(self.layers, config.atoms_per_task, config.active_atoms, config.seed)
        # Which row of the table answers each row of a batch; None: the one that `tasks.answers` names, for all.
        self.rows: tuple[int, ...] | None = None
        self.infers_task = False
        self._atoms: Kept[Tensor] = Kept()
        self._anchors: Kept[Tensor] = Kept()
        self._sizes: Kept[Tensor] = Kept()
        self._vectors: Kept[Vectors] = Kept()
        self._pass: Vectors | None = None
        if not config.init_weights:
            random = torch.randn(self.atoms.shape, generator=torch.Generator().manual_seed(config.seed + 2))
            self.atoms.data = unscaled(random * RANDOM_NORM[config.placement] / width**0.5)

    # Which task ------------------------------------------------------------------------------------------------

    @property
    def open_task(self) -> str | None:
        """Name of the task that is being learnt."""
        row = self.tasks.being_learnt
        return None if row == NO_ROW else self.tasks.name(row)

    @property
    def learns(self) -> bool:
        """Whether what answers is what is being learnt."""
        return self.rows is None and not self.infers_task and self.tasks.answering == self.tasks.being_learnt

    @property
    def trains(self) -> bool:
        """Whether what answers may move in any step: some optimisers' steps do not count as changes of a tensor."""
        return self.learns and self.atoms.requires_grad

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
    def prompt_memory(self) -> PromptMemory:
        """What tells a prompt's task."""
        return self.router

    def recognise(self, embeddings: Tensor, mask: Tensor) -> tuple[list[int], list[float]]:
        """Row of the task that each prompt looks like, and a confidence; below 1 it looks like none, `FROZEN`."""
        if int(self.router.tasks) == 0:
            return [FROZEN] * len(embeddings), [0.0] * len(embeddings)
        codes, confidences = self.router.infer(self.router.features(embeddings, mask))
        confidences = confidences.where(mask.any(1), 0.0)
        return self.tasks.rows_of(codes).where(confidences == 1, FROZEN).tolist(), confidences.tolist()

    def read_prompts(self, embeddings: Tensor, mask: Tensor) -> None:
        """Answer each row, until the next prompts, as the task that its prompt looks like."""
        self.rows = tuple(self.recognise(embeddings, mask)[0])

    # Its atoms -------------------------------------------------------------------------------------------------

    @torch.no_grad()
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
            HimalayaError: The adapter is trained outside of a task, or as a release; or `set_task` was given another
                number of tasks.
        """
        if first and self.training and self.atoms.requires_grad and torch.is_grad_enabled():
            self.check_training()
        if self.trains:
            return scaled(self.atoms.float())
        rows = self._rows_of(batch)
        moves = self.atoms.requires_grad and self.tasks.being_learnt in rows

        def stacked() -> Tensor:
            each = {row: self.task_atoms(row) for row in {*rows}}
            return torch.stack([each[row] for row in rows]) if len(rows) > 1 else each[rows[0]]

        tasks, dictionary = self.tasks, self.dictionary
        sources = dictionary.core, dictionary.elastic, tasks.numbers, tasks.coefficients, tasks.open_row
        never_the_same = object() if moves else None
        return self._atoms.get(stacked, self.atoms, *sources, given=(rows, never_the_same))

    def _rows_of(self, batch: int) -> tuple[int, ...]:
        """Which row of the table answers each row of a batch; a single one where it is the same for all."""
        rows = (self.tasks.answering,) if self.rows is None else self.rows
        if len({*rows}) == 1:
            return rows[:1]
        each, left = divmod(batch, len(rows))  # beams of a row lie side by side
        if left or not each:
            raise HimalayaError(f"set_task was given {len(rows)} tasks, the batch has {batch} rows")
        return tuple(row for row in rows for _ in range(each))

    @abstractmethod
    def check_training(self) -> None:
        """Called where a pass begins that trains.

        Raises:
            HimalayaError: The adapter may not be trained now.
        """

    # The layers' vectors ---------------------------------------------------------------------------------------

    @property
    def anchors(self) -> Tensor:
        """The layers' anchors, ``(L, d)``, in float32."""
        core = self.dictionary.core_atoms
        return self._anchors.get(lambda: layer_anchors(core(), self.layers, self.config.seed), self.dictionary.core)

    def unit_vectors(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """As `vectors`, for channels of size 1."""
        with full_precision(atoms):
            return update_vectors(self.anchors, self.codes.to(atoms), atoms, self.config.norm_bound)

    def vectors(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """Write and read vectors of all layers, each ``(..., L, d)``, for atoms ``(..., k, d)``."""
        write, read = self.unit_vectors(atoms)
        sizes = self._sizes.get(lambda: sizes_of(self.channels), self.channels)
        return write * sizes, read / sizes

    def of_layer(self, number: int, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write and read vector of a layer, as `edited` takes them. A pass's first layer makes those of all layers."""
        if number == 0 or self._pass is None:
            self._pass = self.of_pass(hidden_states)
        found = self._pass[number]
        if torch.is_grad_enabled() and self.trains and not found[0].requires_grad:
            # A layer inside of a reentrant checkpoint runs again, now with a graph, which must be its own.
            return self.of_pass(hidden_states)[number]
        return found

    @torch.compiler.disable
    def of_pass(self, hidden_states: Tensor) -> Vectors:
        """Those of each layer, for the pass that begins with these hidden states ``(b, s, d)``."""
        atoms, dtype = self.answering_atoms(len(hidden_states)), hidden_states.dtype

        def each_layer() -> Vectors:
            write, read = self.vectors(atoms)  # beside L and d there is perhaps a row, and now a token
            return list(
                zip(write.to(dtype)[..., None, :].unbind(-3), read.to(dtype)[..., None].unbind(-3), strict=True)
            )

        return each_layer() if self.trains else self._vectors.get(each_layer, atoms, self.channels, given=dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pass": None}  # the vectors of the last pass belong to its graph

    # What is reported ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def norm_certificate(self) -> dict[str, float]:
        """The largest norms over all tasks: of an atom, and of a layer's update in units of the channels' sizes."""
        atoms = torch.stack([self.task_atoms(row) for row in {self.tasks.being_learnt, *self.tasks.learnt_rows()}])
        norms = {"atom_norm_max": atoms.norm(dim=-1).max().item()}
        if self.config.placement == "residual_stream":
            write, read = self.unit_vectors(atoms)
            norms["update_norm_max"] = (write.norm(dim=-1) * read.norm(dim=-1)).max().item()
        return norms

    def task_hash(self, name: str) -> str:
        """SHA-256 of all that a task's answers depend on beside the frozen model: the same as long as they are."""
        atoms = self.task_atoms(self.tasks.row_of(name))
        config = {field: getattr(self.config, field) for field in ANSWERS_DEPEND_ON}
        targets = self.config.target_modules
        config["target_modules"] = sorted(targets) if isinstance(targets, set) else targets
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for tensor in (self.anchors, self.channels, atoms):
            digest.update(tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()
