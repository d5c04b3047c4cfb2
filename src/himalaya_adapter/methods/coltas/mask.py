"""Which components of the shared adapter a task may use: a union of masks out of a dictionary, chosen by its name."""

import hashlib

import torch
from torch import Tensor


def mask_dictionary(components: int, atoms: int) -> Tensor:
    """The masks, bool ``(atoms, components)``: they part the components evenly, so that a union's size is known.

    Args:
        components: A multiple of ``atoms``.
        atoms: How many masks.
    """
    return torch.eye(atoms, dtype=torch.bool).repeat_interleave(components // atoms, dim=1)


def task_components(name: str, dictionary: Tensor, count: int) -> Tensor:
    """The components in the union of the ``count`` masks that the hash of a task's name chooses.

    The masks' numbers are put in the order of the SHA-256 of name and number, and the first are taken: the same on
    every machine, and nothing is stored per task.

    Args:
        name: The task's.
        dictionary: What `mask_dictionary` returned.
        count: Masks per task.

    Returns:
        int64, ascending.
    """

    def rank(atom: int) -> bytes:
        return hashlib.sha256(f"{atom} {name}".encode()).digest()

    chosen = sorted(range(len(dictionary)), key=rank)[:count]
    return dictionary[chosen].any(0).nonzero().flatten()
