"""Tasks whose active atoms are provably the same for all tokens."""

import torch
from torch import Tensor

from himalaya_adapter.methods.himalaya.update import LARGEST_TREE_BONUS

from .tables import Tables


def fixed_active_set(tables: Tables, task: int) -> Tensor | None:
    r"""The atoms that every token of the task uses, if that can be proved; else nothing.

    A latent lies in [-1, 1], so the difference of two gate logits lies within the norm
    :math:`\lVert w_i - w_j\rVert_1` of the difference of their biases, and the tree adds to the logit of an elastic
    atom something in (-`LARGEST_TREE_BONUS`, 0]. With these bounds a set S of at most B atoms is the active one for
    every token if each of its atoms has a positive logit and is within the budget (:math:`f(a_i) < B`, see
    `operator.ActiveAtoms`), and every other atom lies below all of S and is not on: S is full, its logit is never
    positive, or it is never within the budget.

    Args:
        tables: Of the adapter.
        task: Its number.

    Returns:
        Positions among the atoms in use, in rising order.
    """
    count, budget = len(tables.codes), tables.most
    gates = tables.task_heads[task][:count].double()
    weights, biases = gates[:, :-1], gates[:, -1]
    elastic = torch.arange(count) >= tables.core_atoms
    bonus = LARGEST_TREE_BONUS if tables.tree is not None else 0.0
    high = biases + weights.abs().sum(1)
    low = biases - weights.abs().sum(1) - bonus * elastic
    gap = biases[:, None] - biases[None]
    reach = torch.cdist(weights, weights, p=1)
    gap_high = gap + reach + bonus * elastic[None]  # of a_i - a_j
    gap_low = gap - reach - bonus * elastic[:, None]
    at_centre = torch.sigmoid(gap / tables.temperature).sum(0)  # f(a_j), with z = 0 and no tree
    order = biases.argsort(descending=True)[:budget]
    on = (biases[order] > 0) & (at_centre[order] < budget)
    on[0] = True
    active = order[on].sort().values
    others = torch.ones(count, dtype=torch.bool)
    others[active] = False
    most_expected = torch.sigmoid(gap_high / tables.temperature).sum(0)
    least_expected = torch.sigmoid(gap_low / tables.temperature).sum(0)
    always_on = (low[active] > 0) & (most_expected[active] < budget)
    if len(active) == 1:
        always_on[:] = True  # the largest is on in any case; that it is the largest is asked for below
    never_on = (high <= 0) | (least_expected >= budget) | (len(active) == budget)
    below = (gap_low[active] > 0).all(0)
    return active if bool(always_on.all() and (never_on & below)[others].all()) else None
