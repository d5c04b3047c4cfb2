"""Tasks whose tokens all use the same atoms: what has to hold for that, and whether it always does."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# The tree may raise one atom's gate over another's by this much (in logits), too little to undo a task's own choice.
LARGEST_TREE_BONUS = 0.5


class ActiveSet(NamedTuple):
    """The atoms that nearly all tokens of a task use.

    Args:
        atoms: Their positions, in rising order.
        margins: Linear functions of the latents ``[z; 1]``, ``(m, p + 1)``: a token with all of them above 0 uses
            exactly these atoms. None of them: every token does.
    """

    atoms: Tensor
    margins: Tensor


def active_set(gates: Tensor, most: int, temperature: float, first_elastic: int | None) -> ActiveSet:
    r"""The atoms that a token of the task uses whose latents are all 0, and what has to hold for others to use them.

    If the set S is full (B atoms), it is the active one where its logits are positive and lie above all others by
    :math:`\mu = T \ln(2(k - B) - 1)`, whatever the tree adds: then
    :math:`f(a_i) < \tfrac12 + (B - 1) + (k - B)\,\sigma(-\mu/T) = B` (see `router.final_gates`). The tree adds to
    the logit of an elastic atom something in (-`LARGEST_TREE_BONUS`, 0]. A latent lies in [-1, 1], so a function
    whose bias exceeds the sum of its other coefficients' magnitudes is always positive, and left out.

    Args:
        gates: The task's map from the latents ``[z; 1]`` to gate logits, ``(k, p + 1)``.
        most: ``B``.
        temperature: ``T`` of inference.
        first_elastic: The position from which on the tree takes part, if there is one.
    """
    count = len(gates)
    biases = gates[:, -1]
    largest = biases.topk(min(most, count))
    expected = torch.sigmoid((biases - largest.values[:, None]) / temperature).sum(1)
    on = (largest.values > 0) & (expected < most)
    on[0] = True
    atoms = largest.indices[on].sort().values
    constant = torch.zeros_like(gates[:1])
    constant[:, -1] = 1
    if len(atoms) < most:
        return ActiveSet(atoms, -constant)  # more atoms may always join
    others = torch.ones_like(biases, dtype=torch.bool)
    others[atoms] = False
    lowest = gates[atoms]
    if first_elastic is not None:
        lowest = lowest - LARGEST_TREE_BONUS * (atoms >= first_elastic)[:, None] * constant
    lead = temperature * math.log(max(2 * (count - most) - 1, 1))
    leads = (lowest[:, None] - gates[others]).flatten(0, 1) - lead * constant
    margins = torch.cat([lowest, leads])
    uncertain = margins[:, -1] <= margins[:, :-1].abs().sum(1)
    return ActiveSet(atoms, margins[uncertain])
