"""Tasks whose tokens all use the same atoms: what has to hold for that, and whether it always does."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from himalaya_adapter.methods.himalaya.update import LARGEST_TREE_BONUS

from .tables import Tables


class ActiveSet(NamedTuple):
    """The atoms that nearly all tokens of a task use.

    Args:
        atoms: Positions among the atoms in use, in rising order.
        margins: Linear functions of the latents ``[z; 1]``, ``(m, p + 1)``: a token with all of them above 0 uses
            exactly these atoms. None of them: every token does.
    """

    atoms: Tensor
    margins: Tensor


def active_set(tables: Tables, task: int) -> ActiveSet:
    r"""The atoms that a token of the task uses whose latents are all 0, and what has to hold for others to use them.

    If the set S is full (B atoms), it is the active one where its logits are positive and lie above all others by
    :math:`\mu = T \ln(2(k - B) - 1)`, whatever the tree adds: then
    :math:`f(a_i) < \tfrac12 + (B - 1) + (k - B)\,\sigma(-\mu/T) = B` (see `operator.ActiveAtoms`). The tree adds to
    the logit of an elastic atom something in (-`LARGEST_TREE_BONUS`, 0]. A latent lies in [-1, 1], so a function
    whose bias exceeds the sum of its other coefficients' magnitudes is always positive, and left out.

    Args:
        tables: Of the adapter.
        task: Its number.
    """
    count, budget = len(tables.codes), tables.most
    gates = tables.task_heads[task, :count]
    biases = gates[:, -1]
    expected = torch.sigmoid((biases[:, None] - biases) / tables.temperature).sum(0)
    order = biases.argsort(descending=True)[:budget]
    on = (biases[order] > 0) & (expected[order] < budget)
    on[0] = True
    atoms = order[on].sort().values
    constant = torch.zeros_like(gates[:1])
    constant[:, -1] = 1
    if len(atoms) < budget:
        return ActiveSet(atoms, -constant)  # more atoms may always join
    others = torch.ones(count, dtype=torch.bool)
    others[atoms] = False
    lowest = gates[atoms]
    if tables.tree is not None:
        lowest = lowest - LARGEST_TREE_BONUS * (atoms >= tables.core_atoms)[:, None] * constant
    lead = tables.temperature * math.log(max(2 * (count - budget) - 1, 1))
    leads = (lowest[:, None] - gates[others]).flatten(0, 1) - lead * constant
    margins = torch.cat([lowest, leads])
    uncertain = margins[:, -1] <= margins[:, :-1].abs().sum(1)
    return ActiveSet(atoms, margins[uncertain])
