"""Where a learnt task's atoms go: a shared slot, a free one, or the least-used one (docs/method.md, "Growth")."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event, Eviction, Sharing
from himalaya_adapter.methods.kd_tree import KDTree

from .config import HimalayaConfig
from .consolidation import FisherMemory
from .dictionary import Dictionary
from .tasks import TERMS, TaskTable, rounded

ROUNDING = 1e-6


class Directions:
    """Atoms that are found by their direction. The index over them is made once, for all that is looked for.

    Args:
        atoms: ``(n, d)``, at least one.
        config: Which index, and its sizes.
    """

    def __init__(self, atoms: Tensor, config: HimalayaConfig) -> None:
        self.atoms = atoms
        self.keys = normalize(atoms, dim=1)
        self.tree: KDTree | None = None
        if config.index != "scan":
            self.tree = KDTree(len(atoms), atoms.shape[1], config.fanout, config.leaf_size).to(atoms.device)
            self.tree.build(self.keys)
            self.bounds = self.tree.bounds(self.keys)

    def nearest(self, vector: Tensor) -> int:
        """Which atom has the largest cosine with a vector ``(d,)`` or its opposite."""
        query = normalize(vector[None], dim=1)
        if self.tree is None:
            return int((self.keys @ query[0]).abs().argmax())
        both = self.tree.search(torch.cat([query, -query]), self.keys, self.bounds)
        return int(both[int((self.keys[both] @ query[0]).abs().argmax())])


class Growth:
    """Puts tasks into the slots of the dictionary. It owns no state: what is free follows from the table.

    Args:
        config: The adapter's.
        dictionary: Core and slots.
        tasks: Who uses which slot.
        fisher: What matters.
    """

    def __init__(self, config: HimalayaConfig, dictionary: Dictionary, tasks: TaskTable, fisher: FisherMemory) -> None:
        self.config = config
        self.dictionary = dictionary
        self.tasks = tasks
        self.fisher = fisher
        self.slots = len(dictionary.elastic)
        self.first_slot = len(dictionary.core)  # the number of the first elastic atom

    def uses(self, but: int | None = None) -> Tensor:
        """How many atoms of tasks, ``but`` those of one row, use each slot, ``(slots,)``."""
        return self.tasks.uses(self.first_slot + self.slots, but)[self.first_slot :]

    def free_slots(self, but: int | None = None) -> list[int]:
        """The slots that no task, ``but`` perhaps that of one row, uses."""
        return (self.uses(but) == 0).nonzero().flatten().tolist()

    def check_room(self, row: int) -> None:
        """Make sure that the task of a row can be stored once it is learnt.

        Raises:
            HimalayaError: It cannot without an eviction, and `evict` is off.
        """
        room, need = len(self.free_slots(but=row)), self.config.atoms_per_task
        if room < need and not self.config.evict:
            raise HimalayaError(
                f"no room for another task: {room} of {self.slots} slots are free, a task needs {need} "
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
        free, kept = self.free_slots(), list[int]()
        occupied = sorted({*range(self.slots)} - {*free})
        there = self._directions(occupied)
        shares = self.fisher.energy / self.fisher.energy.sum().clamp_min(1e-12)
        self.fisher.importance[free] = 0
        for number, atom in enumerate(atoms):
            if not atom.any():  # never moved
                continue
            shared = self._similar(atom, there)
            if shared is not None:
                nearest, coefficient, cosine = shared
                slot = occupied[nearest]
                events.append(Sharing(slot, cosine))
            else:
                if not free:
                    eviction = self._evict(kept)
                    events.append(eviction)
                    free = [eviction.slot]
                    occupied.remove(eviction.slot)
                    there = self._directions(occupied)
                slot, coefficient = free.pop(0), 1.0
                self.dictionary.write(slot, atom)
            kept.append(slot)
            self.tasks.set_atom(row, number, [self.first_slot + slot], [coefficient])
            self.fisher.importance[slot] += shares[number]
        self.tasks.learnt[row] = True
        self.fisher.energy.zero_()
        return events

    @torch.no_grad()
    def remove(self, row: int) -> None:
        """Forget a row of the table: slots that only its task uses become zero, those of other tasks stay."""
        shared = self.tasks.numbers[row][self.tasks.coefficients[row] != 0] - self.first_slot
        self.tasks.clear(row)
        free = self.free_slots()
        self.dictionary.elastic[free] = 0
        self.fisher.importance[free] = 0
        # What the others have of a shared slot: as much as if each of their atoms mattered alike.
        shared = shared[shared >= 0].long()
        self.fisher.importance[shared] = self.uses()[shared] / self.config.atoms_per_task

    def _directions(self, slots: list[int]) -> Directions | None:
        """The atoms of these slots, to look for directions among; none if there are none."""
        if not slots:
            return None
        numbers = torch.tensor(slots, device=self.tasks.numbers.device) + self.first_slot
        return Directions(self.dictionary.atoms(numbers), self.config)

    def _similar(self, atom: Tensor, there: Directions | None) -> tuple[int, float, float] | None:
        """Which of the atoms there can serve, how much of it, and the cosine; none if none is close enough."""
        if there is None:
            return None
        nearest = there.nearest(atom)
        other = there.atoms[nearest]
        cosine = float(normalize(atom, dim=0) @ normalize(other, dim=0))
        coefficient = rounded(float(atom @ other / other.square().sum()))
        missed = float((atom - coefficient * other).square().sum() / atom.square().sum())
        tau = self.config.similarity_threshold_tau
        if abs(cosine) < tau or missed > 2 * (1 - tau**2) + ROUNDING:  # half for the angle, half for the coefficient
            return None
        return nearest, coefficient, cosine

    def _evict(self, keep: list[int]) -> Eviction:
        """Free the least important slot; what it held lives on as a combination of other atoms."""
        missed = self.uses() * self.fisher.importance
        missed[keep] = torch.inf
        slot = int(missed.argmin())
        # A stand-in cannot rest on what is not there, nor on itself.
        absent = {self.first_slot + one for one in (slot, *self.free_slots())}
        usable = [number for number in range(self.first_slot + self.slots) if number not in absent]
        candidates = self.dictionary.atoms(torch.tensor(usable, device=missed.device))
        users = self.tasks.users(self.first_slot + slot)
        survives = []
        for user, atom in users:
            held = self.tasks.atoms(user, self.dictionary)[atom]
            stand_in = self.fisher.stand_in(held, candidates, TERMS, self.config.fisher_projection_steps)
            weights = [rounded(one) for one in stand_in.weights.tolist()]
            share = self.fisher.share(held, torch.tensor(weights).to(held) @ candidates[stand_in.numbers])
            numbers = [usable[one] for one in stand_in.numbers.tolist()]
            # Rounded, it may be worse than nothing.
            self.tasks.set_atom(user, atom, numbers if share > 0 else [], weights if share > 0 else [])
            survives.append(max(0.0, share))
        self.fisher.importance[slot] = 0
        share = sum(survives) / len(survives) if survives else 1.0
        return Eviction(slot, share, tasks=tuple(sorted({self.tasks.name(user) for user, _ in users})))
