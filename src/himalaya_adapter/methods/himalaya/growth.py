"""Where a learnt task's atoms go: a shared slot, a free one, or the least-used one (docs/method.md, "Growth")."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event, Sharing
from himalaya_adapter.methods.kd_tree import KDTree

from .config import HimalayaConfig
from .consolidation import FisherMemory
from .dictionary import Dictionary
from .tasks import TaskTable, rounded


def nearest(vectors: Tensor, atoms: Tensor, config: HimalayaConfig) -> Tensor:
    """Which of the atoms ``(n, d)`` has the largest cosine with each vector ``(m, d)`` or its opposite, ``(m,)``."""
    keys, queries = normalize(atoms, dim=1), normalize(vectors, dim=1)
    if config.index == "scan":
        return (queries @ keys.T).abs().argmax(1)
    tree = KDTree(len(atoms), atoms.shape[1], config.fanout, config.leaf_size).to(atoms.device)
    tree.build(keys)
    both = tree.nearest(torch.cat([queries, -queries]), keys).view(2, -1)
    closer = (keys[both] * queries).sum(-1).abs().argmax(0)
    return both.gather(0, closer[None])[0]


class Growth:
    """Fills and frees the slots of an adapter. It stores nothing: which slots are free follows from the table.

    Args:
        config: The adapter's.
        dictionary: Its atoms.
        tasks: Its table of tasks.
        fisher: What matters in it; none where nothing is evicted.
    """

    def __init__(
        self, config: HimalayaConfig, dictionary: Dictionary, tasks: TaskTable, fisher: FisherMemory | None
    ) -> None:
        self.config = config
        self.dictionary, self.tasks, self.fisher = dictionary, tasks, fisher
        self.first_slot = config.core_atoms  # the number of the first elastic atom

    def slot_uses(self, but: int | None = None) -> Tensor:
        """How many atoms of tasks, ``but`` those of one row, use each slot, ``(slots,)``."""
        slots = self.tasks.numbers[self.tasks.used(but)] - self.first_slot
        return torch.bincount(slots[slots >= 0].long(), minlength=self.config.elastic_atoms)

    def free_slots(self, but: int | None = None) -> list[int]:
        """The slots that no task, ``but`` perhaps that of one row, uses."""
        return (self.slot_uses(but) == 0).nonzero().flatten().tolist()

    def check_room(self, row: int | None) -> None:
        """Make sure that a task, new or that of a row, can be stored once it is learnt.

        Raises:
            HimalayaError: It cannot without an eviction, and there are none.
        """
        room, need = len(self.free_slots(but=row)), self.config.atoms_per_task
        if room < need and self.fisher is None:
            raise HimalayaError(
                f"no room for another task: {room} of {self.config.elastic_atoms} slots are free, a task needs {need} "
                "(atoms_per_task); attach an adapter with more elastic_atoms, or load it with evict=True in its "
                "config: evictions forget part of what was learnt"
            )

    @torch.no_grad()
    def store(self, row: int, atoms: Tensor) -> list[Event]:
        """Write a task's atoms ``(k, d)`` into the dictionary and its row.

        Returns:
            What was shared and what was evicted.
        """
        self.tasks.empty(row)  # what only this task used is free
        free, parts = self.free_slots(), self._shared(atoms, self.slot_uses().nonzero().flatten())
        events: list[Event] = [Sharing(slot, cosine) for slot, _, cosine in parts.values()]
        new = [number for number, atom in enumerate(atoms) if atom.any() and number not in parts]
        while self.fisher is not None and len(free) < len(new):
            keep = [slot for slot, *_ in parts.values()]
            events.append(self.fisher.evict(self.slot_uses(), keep, self.tasks, self.dictionary))
            free = self.free_slots()
        taken = free[: len(new)]
        for number, slot in zip(new, taken, strict=True):
            self.dictionary.elastic[slot] = self.dictionary.row_format.pack(atoms[number, None])[0]
            parts[number] = slot, atoms.new_ones(()), 1.0
        for number, (slot, coefficient, _) in parts.items():
            self.tasks.set_atom(row, number, [self.first_slot + slot], coefficient[None])
        self.tasks.learnt[row] = True
        if self.fisher is not None:
            self.fisher.credit({number: slot for number, (slot, *_) in parts.items()}, taken)
        return events

    @torch.no_grad()
    def remove(self, row: int) -> None:
        """Forget a row of the table: slots that only its task uses become zero, those of other tasks stay."""
        used = self.slot_uses()
        self.tasks.names[row] = 0
        self.tasks.empty(row)
        left = self.slot_uses()
        self.dictionary.elastic[left == 0] = 0
        if self.fisher is not None:
            self.fisher.forget(left, (left > 0) & (left < used))

    def _shared(self, atoms: Tensor, slots: Tensor) -> dict[int, tuple[int, Tensor, float]]:
        """Which of the atoms ``(k, d)`` are in a slot already: by number the slot, how much of it, and the cosine."""
        if not len(slots):
            return {}
        others = self.dictionary.atoms(slots + self.first_slot)
        near = nearest(atoms, others, self.config)
        others = others[near]
        cosines, tau = cosine_similarity(atoms, others), self.config.similarity_threshold_tau
        coefficients = rounded((atoms * others).sum(1) / others.square().sum(1))
        missed = (atoms - coefficients[:, None] * others).square().sum(1) / atoms.square().sum(1)
        # Half of what may be missed is for the angle, half for the coefficient. An atom that never moved misses nan.
        close = (cosines.abs() >= tau) & (missed <= 2 * (1 - tau**2) + 1e-6)
        found = close.nonzero().flatten().tolist()
        return {one: (int(slots[near[one]]), coefficients[one], float(cosines[one])) for one in found}
