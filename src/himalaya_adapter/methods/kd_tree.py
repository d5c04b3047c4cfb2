"""A KD-tree over the atoms: exact nearest neighbours, and a soft membership that trains (docs/method-strict.md, 4)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Where the thresholds of missing children lie: beyond every query, finite so that a gradient stays defined.
FAR = 1e6
SMALLEST_SPREAD = 1e-3
SMALLEST_WIDTH = 1e-6
# Per level; e^-50 counts as nothing in any sum, and a gate logit stays finite with it.
LOWEST_LOG_MEMBERSHIP = -50.0
# Pairs of a query and an atom that one search may have in memory when nothing can be pruned.
PAIRS_AT_ONCE = 2**21


class Bounds(NamedTuple):
    """Where the keys lie now: the corners ``(all nodes, p)`` of every node's box, leaves last, and the leaves' atoms.

    Spare places of a leaf in ``members`` ``(leaves, leaf_size)`` name atom 0: looking at an atom twice is harmless.
    """

    low: Tensor
    high: Tensor
    members: Tensor


# One level of the tree as the k atoms see it, by the borders of the child that each is in, the lower ones first:
# slopes (2k, p), 1/s, then -1/s, on the node's axis; shifts (2k,), -t_c / s, then t_{c+1} / s; (k, 2k), which adds the
# two of each atom; and the logarithms of the children's widths (k,).
Level = tuple[Tensor, Tensor, Tensor, Tensor]


class Leaves(NamedTuple):
    """The atoms' leaves, given by the borders on the path to each."""

    atoms: int
    levels: tuple[Level, ...]

    def log_membership(self, queries: Tensor) -> Tensor:
        r"""The logarithm of each query's soft membership in each atom's leaf.

        Child ``c`` of a node has :math:`\sigma((q - t_c)/s) - \sigma((q - t_{c+1})/s)
        = \sigma((q - t_c)/s)\,\sigma((t_{c+1} - q)/s)\,(1 - e^{(t_c - t_{c+1})/s})`, with ``q`` the query along the
        node's axis, ``s`` its spread and ``t`` its thresholds in rising order; a leaf has the product over its path.

        Args:
            queries: Shape ``(..., p)``.

        Returns:
            Shape ``(..., k)``: finite, differentiable in the thresholds and the queries.
        """
        if not self.levels:  # a single leaf
            return queries.new_zeros(*queries.shape[:-1], self.atoms)
        parts = []
        for level in self.levels:
            slopes, shifts, both, log_widths = (part.to(queries.dtype) for part in level)
            # Products with matrices of zeros and ones: fewer and faster operations than picking and adding.
            log_shares = F.linear(F.logsigmoid(F.linear(queries, slopes, shifts)), both, log_widths)
            parts.append(log_shares.clamp_min(LOWEST_LOG_MEMBERSHIP))
        return sum(parts[1:], start=parts[0])


class KDTree(nn.Module):
    """A full tree with ``fanout`` children a node, deep enough for leaves of at most ``leaf_size`` atoms.

    The nodes are numbered level by level, the children of node ``i`` from ``i * fanout + 1`` on. No shape depends on
    the keys: `build` fills the tree. A search is exact at any time; the thresholds serve the membership alone.

    Args:
        atoms: Number of keys ``k``.
        dimensions: Their width ``p``.
        fanout: Children of a node: 4, 8 or 16.
        leaf_size: Most atoms in a leaf.
    """

    def __init__(self, atoms: int, dimensions: int, fanout: int, leaf_size: int) -> None:
        super().__init__()
        self.dimensions, self.fanout, self.leaf_size, depth = dimensions, fanout, leaf_size, 0
        while fanout**depth * leaf_size < atoms:
            depth += 1
        self.leaves, nodes = fanout**depth, (fanout**depth - 1) // (fanout - 1)
        self.thresholds = nn.Parameter(torch.zeros(nodes, fanout - 1))
        self.axes: Tensor = nn.Buffer(torch.zeros(nodes, dtype=torch.long))
        self.spread: Tensor = nn.Buffer(torch.ones(nodes))
        leaf = torch.arange(atoms) * self.leaves // atoms
        self.path: Tensor = nn.Buffer(leaf[:, None] // fanout ** torch.arange(depth - 1, -1, -1) % fanout)

    @torch.no_grad()
    def build(self, keys: Tensor) -> None:
        """Split the keys ``(k, p)`` level by level along each node's axis of largest variance, into equal counts.

        A node gets no more children than it needs for its leaves to hold at most ``leaf_size`` keys.
        """
        node = torch.zeros(len(keys), dtype=torch.long, device=keys.device)  # each key's node, counted in its level
        borders = torch.arange(1, self.fanout, device=keys.device)
        start = 0
        for level in range(self.path.shape[1]):
            size = self.fanout**level
            here = slice(start, start + size)
            start += size
            count = node.bincount(minlength=size)
            parts = (-(-count // self.leaf_size)).clamp(1, self.fanout)
            mean = keys.new_zeros(size, keys.shape[1]).index_add(0, node, keys) / count.clamp_min(1)[:, None]
            squares = torch.zeros_like(mean).index_add(0, node, (keys - mean[node]) ** 2)
            largest, axis = (squares / count.clamp_min(1)[:, None]).max(dim=1)
            values = keys.gather(1, axis[node, None])[:, 0]
            order = values.argsort(stable=True)
            order = order[node[order].argsort(stable=True)]  # by node, and by value within a node
            first = count.cumsum(0) - count
            rank = torch.empty_like(node).scatter_(0, order, torch.arange(len(keys), device=keys.device)) - first[node]
            # The first key to the right of each border; the clamp matters only where a child is missing.
            after = (first[:, None] - (-(borders * count[:, None]) // parts[:, None])).clamp(1, len(keys) - 1)
            middle = (values[order[after - 1]] + values[order[after]]) / 2
            self.thresholds[here] = middle.where(borders < parts[:, None], FAR).to(self.thresholds.dtype)
            self.axes[here] = axis
            self.spread[here] = largest.sqrt().clamp_min(SMALLEST_SPREAD).to(self.spread.dtype)
            self.path[:, level] = rank * parts[node] // count[node]
            node = node * self.fanout + self.path[:, level]

    def as_leaves(self) -> Leaves:
        """What the atoms' memberships follow from, level by level: made once for any number of queries."""
        wide = torch.promote_types(self.thresholds.dtype, torch.float32)  # 1/s and t/s are rounded by themselves
        thresholds, spread = self.thresholds.to(wide), self.spread.to(wide)
        ends = thresholds.new_full((len(thresholds), 1), torch.inf)
        borders = torch.cat([-ends, thresholds.sort(dim=1).values, ends], dim=1)
        widths = borders.diff(dim=1) / spread[:, None]
        log_widths = torch.log(-torch.expm1(-widths.clamp_min(SMALLEST_WIDTH)))
        levels = []
        both = torch.eye(len(self.path), dtype=borders.dtype, device=borders.device).repeat(1, 2)
        node = self.path.new_zeros(len(self.path))
        for child in self.path.unbind(1):
            slopes = 1 / spread[node]
            axes = F.one_hot(self.axes[node], self.dimensions) * slopes[:, None]
            shifts = torch.stack([-borders[node, child] * slopes, borders[node, child + 1] * slopes])
            levels.append((torch.cat([axes, -axes]), shifts.flatten(), both, log_widths[node, child]))
            node = node * self.fanout + 1 + child
        return Leaves(len(self.path), tuple(levels))

    @torch.no_grad()
    def nearest(self, queries: Tensor, keys: Tensor, bounds: Bounds | None = None) -> Tensor:
        """The index ``(n,)`` of the key ``(k, p)`` nearest to each query ``(n, p)``, the smallest among equals.

        Always what a scan with `torch.cdist` in 64 bits (``donot_use_mm_for_euclid_dist``) returns: the bounds come
        from the keys themselves, so neither trained thresholds nor keys that moved since `build` change the answer.

        Args:
            queries: ``(n, p)``.
            keys: ``(k, p)``.
            bounds: The `bounds` of these keys, if they are at hand.
        """
        bounds = bounds or self.bounds(keys)
        parts = queries.split(max(1, PAIRS_AT_ONCE // len(keys)))
        return torch.cat([self._search(part, keys, bounds) for part in parts])

    @torch.no_grad()
    def bounds(self, keys: Tensor) -> Bounds:
        """The boxes around the keys ``(k, p)``, good for any number of searches until a key moves."""
        leaf = torch.zeros(len(keys), dtype=torch.long, device=keys.device)
        for child in self.path.unbind(1):
            leaf = leaf * self.fanout + child
        order = leaf.argsort()
        count = leaf.bincount(minlength=self.leaves)
        rank = torch.arange(len(keys), device=keys.device) - (count.cumsum(0) - count)[leaf[order]]
        members = leaf.new_zeros(self.leaves, self.leaf_size)
        members[leaf[order], rank] = order
        return Bounds(self._low_corners(keys, leaf), -self._low_corners(-keys, leaf), members)

    def _low_corners(self, keys: Tensor, leaf: Tensor) -> Tensor:
        """The low corner of every node's box from the keys and their leaves; infinite where a node is empty."""
        empty = keys.new_full((self.leaves, keys.shape[1]), torch.inf)
        levels = [empty.scatter_reduce(0, leaf[:, None].expand_as(keys), keys, "amin")]
        while len(levels[0]) > 1:
            levels.insert(0, levels[0].unflatten(0, (-1, self.fanout)).amin(1))
        return torch.cat(levels)

    def _search(self, queries: Tensor, keys: Tensor, bounds: Bounds) -> Tensor:
        """Branch and bound, level by level for all queries at once."""
        children = torch.arange(1, self.fanout + 1, device=keys.device)
        depth, inner = self.path.shape[1], len(self.axes)
        # A first guess: down to the nearest box at every level.
        node = torch.zeros(len(queries), dtype=torch.long, device=keys.device)
        for _ in range(depth):
            family = node[:, None] * self.fanout + children
            node = family.gather(1, _gaps(queries, family, bounds).argmin(1, keepdim=True))[:, 0]
        best = _distances(queries, keys[bounds.members[node - inner]]).amin(1)
        # All nodes whose box is no farther than that, as pairs of a query and a node.
        query, node = torch.arange(len(queries), device=keys.device), torch.zeros_like(node)
        for _ in range(depth):
            family = node[:, None] * self.fanout + children
            near = _gaps(queries[query], family, bounds) <= best[query, None]
            query, node = query[near.nonzero()[:, 0]], family[near]
        atoms = bounds.members[node - inner]
        distances = _distances(queries[query], keys[atoms])
        best = best.scatter_reduce(0, query, distances.amin(1), "amin")
        atoms = atoms.where(distances == best[query, None], len(keys)).amin(1)
        return torch.zeros_like(best, dtype=torch.long).scatter_reduce(0, query, atoms, "amin", include_self=False)


def _gaps(queries: Tensor, nodes: Tensor, bounds: Bounds) -> Tensor:
    """How far each query ``(m, p)`` is from the boxes of its nodes ``(m, c)``; infinite for an empty box.

    Rounded like the distance to a key, to the nearest point of the box, so that no gap exceeds the distance to a key
    inside: every step of the computation is monotone.
    """
    return _distances(queries, queries[:, None].clamp(bounds.low[nodes], bounds.high[nodes]))


def _distances(queries: Tensor, points: Tensor) -> Tensor:
    """Distances ``(m, c)`` from each query ``(m, p)`` to its own points ``(m, c, p)``, in 64 bits."""
    return torch.cdist(queries[:, None].double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
