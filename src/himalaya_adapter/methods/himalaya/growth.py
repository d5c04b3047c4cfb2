"""Where a learnt task's atoms go: a shared slot, a free one, or the least-used one (docs/method.md, "Growth")."""

from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import normalize

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event, Eviction, Sharing
from himalaya_adapter.methods.kd_tree import KDTree

from .config import HimalayaConfig
from .consolidation import FisherMemory
from .dictionary import Dictionary
from .tasks import TaskTable, rounded

ROUNDING = 1e-6


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
        fisher: What matters in it.
    """

    def __init__(self, config: HimalayaConfig, dictionary: Dictionary, tasks: TaskTable, fisher: FisherMemory) -> None:
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

    def check_room(self, row: int) -> None:
        """Make sure that the task of a row can be stored once it is learnt.

        Raises:
            HimalayaError: It cannot without an eviction, and `evict` is off.
        """
        room, need = len(self.free_slots(but=row)), self.config.atoms_per_task
        if room < need and not self.config.evict:
            raise HimalayaError(
                f"no room for another task: {room} of {self.config.elastic_atoms} slots are free, a task needs {need} "
                "(atoms_per_task); attach an adapter with more elastic_atoms, or allow evictions with evict=True, "
                "which forget part of what was learnt"
            )

    @torch.no_grad()
    def store(self, row: int, atoms: Tensor) -> list[Event]:
        """Write a task's atoms ``(k, d)`` into the dictionary and its row.

        Returns:
            What was shared and what was evicted.
        """
        self.tasks.empty(row)  # what only this task used is free
        events: list[Event] = []
        free, mine = self.free_slots(), list[int]()
        occupied = sorted({*range(self.config.elastic_atoms)} - {*free})
        near = self._nearest_slots(atoms, occupied)
        shares = self.fisher.energy / self.fisher.energy.sum().clamp_min(1e-12)
        self.fisher.importance[free] = 0
        for number, atom in enumerate(atoms):
            if not atom.any():  # never moved
                continue
            shared = self._shared(atom, near[number]) if occupied else None
            if shared is not None:
                slot, coefficient, cosine = near[number], *shared
                events.append(Sharing(slot, cosine))
            else:
                if not free:
                    eviction = self._evict(mine)
                    events.append(eviction)
                    free = [eviction.slot]
                    occupied.remove(eviction.slot)
                    near = self._nearest_slots(atoms, occupied)
                slot, coefficient = free.pop(0), torch.tensor(1.0)
                self.dictionary.elastic[slot] = self.dictionary.row_format.pack(atom[None])[0]
            mine.append(slot)
            self.tasks.set_atom(row, number, [self.first_slot + slot], coefficient[None])
            self.fisher.importance[slot] += shares[number]
        self.tasks.learnt[row] = True
        self.fisher.energy.zero_()
        return events

    @torch.no_grad()
    def remove(self, row: int) -> None:
        """Forget a row of the table: slots that only its task uses become zero, those of other tasks stay."""
        shared = self.tasks.numbers[row][self.tasks.coefficients[row] != 0] - self.first_slot
        self.tasks.names[row] = 0
        self.tasks.empty(row)
        free = self.free_slots()
        self.dictionary.elastic[free] = 0
        self.fisher.importance[free] = 0
        # What the others have of a shared slot: as much as if each of their atoms mattered alike.
        shared = shared[shared >= 0].long()
        self.fisher.importance[shared] = self.slot_uses()[shared] / self.config.atoms_per_task
        # Which task a past gradient is from is not kept, so all of them go.
        for buffer in (self.fisher.residuals, self.fisher.seen, self.fisher.energy):
            buffer.zero_()

    def _slot_atoms(self, slots: list[int]) -> Tensor:
        return self.dictionary.atoms(torch.tensor(slots, device=self.fisher.energy.device) + self.first_slot)

    def _nearest_slots(self, atoms: Tensor, slots: list[int]) -> list[int]:
        """The slot of these whose atom points most nearly where each of the atoms ``(k, d)`` does, or away from it."""
        found = nearest(atoms, self._slot_atoms(slots), self.config).tolist() if slots else []
        return [slots[one] for one in found]

    def _shared(self, atom: Tensor, slot: int) -> tuple[Tensor, float] | None:
        """How much of a slot's atom can serve as another atom, and their cosine; none if it is not close enough."""
        other = self._slot_atoms([slot])[0]
        cosine = float(normalize(atom, dim=0) @ normalize(other, dim=0))
        coefficient = rounded(atom @ other / other.square().sum())
        missed = float((atom - coefficient * other).square().sum() / atom.square().sum())
        tau = self.config.similarity_threshold_tau
        if abs(cosine) < tau or missed > 2 * (1 - tau**2) + ROUNDING:  # half for the angle, half for the coefficient
            return None
        return coefficient, cosine

    def _evict(self, keep: list[int]) -> Eviction:
        """Free the least important slot; what it held lives on as a combination of other atoms."""
        missed = self.slot_uses() * self.fisher.importance
        missed[keep] = torch.inf
        slot = int(missed.argmin())
        # A stand-in cannot rest on what is not there, nor on itself.
        absent = {self.first_slot + one for one in (slot, *self.free_slots())}
        usable = [number for number in range(self.first_slot + self.config.elastic_atoms) if number not in absent]
        steps = self.config.fisher_projection_steps
        survives = self.fisher.consolidate(self.first_slot + slot, usable, self.tasks, self.dictionary, steps)
        self.fisher.importance[slot] = 0
        names = tuple(sorted({self.tasks.name(row) for row, _ in survives}))
        return Eviction(slot, fmean(survives.values()) if survives else 1.0, tasks=names)
