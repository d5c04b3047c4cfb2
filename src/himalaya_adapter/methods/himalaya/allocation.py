"""Which elastic atoms a task owns: taken from the free slots, evicted from earlier tasks, grown inside a task."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .consolidation import fisher_projection, imprint
from .growth import principal_direction
from .protection import reset_head
from .router import OWN_GATE, UNUSED_GATE

if TYPE_CHECKING:
    from .shared import SharedAdapter

# A grown atom starts with little weight: it turns r towards the residual without replacing what was learnt.
GROWN_COEFFICIENT = 0.1


def allocate(shared: "SharedAdapter") -> list[dict[str, Any]]:
    """Give the task its share of the free elastic slots; when there is none, the slot that earlier tasks miss least.

    The share is what all tasks so far would get alike, at most `atoms_per_task` and at least one.

    Returns:
        The evictions.
    """
    core = shared.config.core_atoms
    if shared.tasks_learnt == 0:
        shared.in_use[core:] = False
    evictions = [evict(shared)] if shared.in_use[core:].all() else []
    free = (~shared.in_use[core:]).nonzero().flatten()
    alike = shared.config.elastic_atoms // (int(shared.tasks_learnt) + 1)
    share = max(1, min(shared.config.atoms_per_task, alike))
    shared.own.zero_()
    shared.own[core + free[:share]] = True
    shared.in_use |= shared.own
    return evictions


def evict(shared: "SharedAdapter") -> dict[str, Any]:
    """Free the slot that earlier tasks miss least; what it did for them is handed over to other atoms.

    What is missed is the importance (usage times Fisher information) times the share that no stand-in reproduces.
    """
    core, importance = shared.config.core_atoms, shared.importance
    slots = shared.in_use[core:].nonzero().flatten().tolist()
    if shared.config.consolidate:
        residuals = shared.growth.unit_residuals()
        steps = shared.config.fisher_projection_steps
        shared_use = shared.consolidation.shared_use()
        stand_ins = {
            slot: shared.consolidation.stand_in(
                shared.dictionary.atoms(), core + slot, shared_use, shared.in_use, residuals, steps
            )
            for slot in slots
        }
        slot = min(slots, key=lambda one: importance[one].item() * (1 - stand_ins[one].survives))
        stand_in = stand_ins[slot]
        head = imprint(shared.router.head, core + slot, stand_in, shared.consolidation, OWN_GATE, UNUSED_GATE)
        shared.router.head.copy_(head)
        shared.consolidation.hand_over(core + slot, stand_in)
        if stand_in.newcomer >= core:
            importance[stand_in.newcomer - core] += importance[slot] * stand_in.survives
        taken_over = {"newcomer": stand_in.newcomer, "survives": stand_in.survives}
    else:
        slot, taken_over = min(slots, key=lambda one: importance[one].item()), {}
    event = {"event": "eviction", "slot": slot, "importance": importance[slot].item(), **taken_over}
    importance[slot] = 0
    shared.in_use[core + slot] = False
    return event


def grow(shared: "SharedAdapter") -> dict[str, Any] | None:
    """Promote the residuals' main direction to an atom: in a free slot, or in the task's least useful one."""
    core = shared.config.core_atoms
    event: dict[str, Any] = {"event": "promotion", "similarity": shared.growth.mean_similarity}
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
        event["evicted"] = slot
        if shared.config.consolidate:
            others = core + own[own != slot]
            weights, event["survives"] = fisher_projection(
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
    return event | {"slot": slot}


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
