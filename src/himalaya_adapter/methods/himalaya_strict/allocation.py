"""Which elastic atoms a task owns, and which it borrows: free slots, slots of earlier tasks, growth inside a task."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from himalaya_adapter.methods.events import Eviction, Promotion
from himalaya_adapter.methods.fisher import fisher_projection

from .consolidation import PARTNER_SHARE, StandIn, imprint
from .growth import principal_direction
from .protection import reset_head
from .router import OWN_GATE, UNUSED_GATE

if TYPE_CHECKING:
    from .shared import SharedAdapter

# A grown atom starts with little weight: it turns r towards the residual without replacing what was learnt.
GROWN_COEFFICIENT = 0.1


def allocate(shared: "SharedAdapter") -> list[Eviction]:
    """Give the task its share of the free elastic slots; when there is none, the slot that earlier tasks miss least.

    The share is what all tasks so far would get alike, at most `atoms_per_task` and at least one. With ``evict=False``
    a task gets none where all slots are taken: it then learns with borrowed atoms.

    Returns:
        The evictions.
    """
    core = shared.config.core_atoms
    if shared.tasks_learnt == 0:
        shared.in_use[core:] = False
    evictions = [evict(shared)] if shared.config.evict and shared.in_use[core:].all() else []
    free = (~shared.in_use[core:]).nonzero().flatten()
    alike = shared.config.elastic_atoms // (int(shared.tasks_learnt) + 1)
    share = max(1, min(shared.config.atoms_per_task, alike))
    shared.own.zero_()
    shared.own[core + free[:share]] = True
    shared.in_use |= shared.own
    return evictions


def borrow(shared: "SharedAdapter", worth: Tensor) -> Tensor:
    """Atoms of others, as many as may be active, for a task that has none of its own: those worth most to it.

    They stay as they are, and the task's head gives them coefficients of its own: that costs no storage, and earlier
    tasks do not notice.

    Args:
        shared: The adapter.
        worth: What each atom is worth to the task, ``(k,)``.

    Returns:
        Their mask, ``(k,)``.
    """
    best = worth.masked_fill(~shared.in_use, -torch.inf).topk(min(shared.config.expected_active_atoms, len(worth)))
    return torch.zeros_like(shared.in_use).index_fill_(0, best.indices, True) & shared.in_use


def evict(shared: "SharedAdapter") -> Eviction:
    """Free the slot that earlier tasks miss least; what it did for them is handed over to other atoms.

    What is missed is the importance (usage times Fisher information, in shares of the task) times the share that no
    stand-in reproduces. The atoms that were on with it become as much more important.
    """
    core, importance = shared.config.core_atoms, shared.importance
    slots = shared.in_use[core:].nonzero().flatten().tolist()
    together = shared.consolidation.shared_use()
    stand_ins = _stand_ins(shared, slots, together) if shared.config.consolidate else {}
    missed = {slot: importance[slot].item() for slot in slots}
    for slot, stand_in in stand_ins.items():
        missed[slot] *= 1 - stand_in.survives
    slot = min(slots, key=lambda one: missed[one])
    event = Eviction(slot, importance=importance[slot].item())
    if slot in stand_ins:
        stand_in = stand_ins[slot]
        head = imprint(shared.router.head, core + slot, stand_in, shared.consolidation, OWN_GATE, UNUSED_GATE)
        shared.router.head.copy_(head)
        shared.consolidation.hand_over(core + slot, stand_in)
        if stand_in.newcomer >= core:
            importance[stand_in.newcomer - core] += importance[slot] * stand_in.survives
        event = replace(event, newcomer=stand_in.newcomer, survives=stand_in.survives)
    partners = shared.in_use[core:] & (
        together[core + slot, core:] > PARTNER_SHARE * together[core + slot, core + slot]
    )
    importance[slot] = 0
    partners[slot] = False
    importance[partners] += missed[slot] / max(1, int(partners.sum()))
    shared.in_use[core + slot] = False
    return event


def _stand_ins(shared: "SharedAdapter", slots: list[int], together: Tensor) -> dict[int, StandIn]:
    """What could take the place of the atom in each slot, by how much tasks used atoms together ``(k, k)``."""
    residuals, atoms = shared.growth.unit_residuals(), shared.dictionary.atoms()
    steps = shared.config.fisher_projection_steps
    return {
        slot: shared.consolidation.stand_in(
            atoms, shared.config.core_atoms + slot, together, shared.in_use, residuals, steps
        )
        for slot in slots
    }


def grow(shared: "SharedAdapter") -> Promotion | None:
    """Promote the residuals' main direction to an atom: in a free slot, or in the task's least useful one."""
    core = shared.config.core_atoms
    similarity, evicted, survives = shared.growth.mean_similarity, None, None
    shared.growth.restart()
    own = shared.own_elastic.nonzero().flatten()
    free = (~shared.in_use[core:]).nonzero().flatten()
    target = shared.router.task_head(shared.code).clone()
    coefficients = target[core + len(shared.own_elastic) :]  # a view of the coefficient rows, and the gain's
    residuals = shared.growth.unit_residuals().to(shared.dictionary.elastic.dtype)
    if len(free) and len(own) < shared.config.atoms_per_task:
        slot = int(free[0])
    elif len(own) > 1:
        importance = (shared.statistics.usage[core:] * shared.statistics.fisher)[own]
        slot = int(own[importance.argmin()])
        evicted = slot
        if shared.config.consolidate:
            others = core + own[own != slot]
            weights, survives = fisher_projection(
                shared.dictionary.elastic[slot],
                shared.dictionary.atoms()[others],
                residuals,
                shared.config.fisher_projection_steps,
            )
            coefficients[others] += weights[:, None] * coefficients[core + slot]
    else:
        return None  # what is left belongs to other tasks
    direction = principal_direction(residuals)
    target[core + slot], coefficients[core + slot] = 0, 0
    target[core + slot, -1], coefficients[core + slot, -1] = OWN_GATE, GROWN_COEFFICIENT
    shared.router.head.copy_(reset_head(shared.router.head, target, shared.head_projector, shared.code))
    shared.dictionary.elastic[slot] = direction
    shared.in_use[core + slot] = shared.own[core + slot] = True
    shared.statistics.fisher[slot] = 0
    shared.rebuild_tree()
    return Promotion(slot, similarity, evicted, survives)


@torch.no_grad()
def forget_moments(shared: "SharedAdapter", optimizer: torch.optim.Optimizer, slot: int) -> None:
    """Zero the optimiser's moments of an atom that was overwritten: its row, its routing, the rebuilt tree."""
    atom = shared.config.core_atoms + slot
    rows: list[tuple[Tensor, Any]] = [
        (shared.dictionary.elastic, slot),
        (shared.router.head, [atom, len(shared.own) + atom]),
    ]
    if shared.tree is not None:
        rows.append((shared.tree.thresholds, slice(None)))
    for parameter, index in rows:
        for moment in optimizer.state.get(parameter, {}).values():
            if torch.is_tensor(moment) and moment.shape == parameter.shape:
                moment[index] = 0
