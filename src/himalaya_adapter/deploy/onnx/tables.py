"""The operator's constants, out of the content of a release file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from himalaya_adapter.methods.himalaya import HimalayaConfig, SharedAdapter
from himalaya_adapter.methods.himalaya.release import ATOMS, SMOOTHING, atom_bits, pack, unpack
from himalaya_adapter.methods.himalaya.router import FINAL_TEMPERATURE_SHARE, task_code
from himalaya_adapter.methods.himalaya.tree import SMALLEST_WIDTH
from himalaya_adapter.methods.quantization import GROUP, UNQUANTISED_BITS, unpack_codes
from himalaya_adapter.methods.release import CHECKSUM, split_by_prefix

# Its tanh is 1 in 32 bits: the router's constant feature then comes out of the same product as the latents, and a
# fixed gain out of the same tanh as a learned one.
SATURATED = 20.0
# Stands for an infinite border of the tree: its softplus is 0, and it survives a product with 0.
BEYOND = -1e30


@dataclass(frozen=True)
class Tables:
    """What the graphs look up, for the atoms in use (``k`` of them, core first) and the exported tasks.

    Args:
        projection: :math:`P`, ``(p, d)``.
        offset: The router's, ``(p,)``.
        heads: int8 (half precision for an adapter of 16 bits) head, ``(2k + 1, p + 1, e)``.
        head_scale: Of its rows, ``(2k + 1,)``.
        task_codes: One row per task, ``(T, e)``.
        codes: int8 (or half precision) codes of the atoms in groups, ``(k, G, g)``.
        scale: Step of each group, ``(k, G, 1)``; the atoms' lengths are divided out.
        minimum: Value of code 0, ``(k, G, 1)``; likewise.
        smoothing: Factor of each column, ``(d,)``.
        core_atoms: How many of the atoms are core atoms.
        tree: Borders of the leaves, if the adapter has a tree that tells leaves apart.
        most: The most atoms that a token may use.
        temperature: Of the gates.
        fixed_gain: Whether the gain is 1 for all tokens.
        gain_factor: What the gain is multiplied with.
    """

    projection: Tensor
    offset: Tensor
    heads: Tensor
    head_scale: Tensor
    task_codes: Tensor
    codes: Tensor
    scale: Tensor
    minimum: Tensor
    smoothing: Tensor
    core_atoms: int
    tree: "TreeTables | None"
    most: int
    temperature: float
    fixed_gain: bool
    gain_factor: float

    @property
    def atoms(self) -> Tensor:
        """The unit atoms ``(k, d)`` that the codes stand for."""
        return (self.codes.float() * self.scale + self.minimum).flatten(1) * self.smoothing

    @property
    def task_heads(self) -> Tensor:
        """The head of each exported task, ``(T, 2k + 1, p + 1)``; a fixed gain is the saturated constant."""
        return torch.einsum("te,ole->tol", self.task_codes, self.heads.float() * self.head_scale[:, None, None])


@dataclass(frozen=True)
class TreeTables:
    """The soft leaf membership of a tree of fixed shape, as one linear map and a softplus.

    Args:
        borders: ``(p, 2 levels leaves)``: minus the distances from the lower, then from the upper borders, in spreads.
        shift: Of these, ``(2 levels leaves,)``.
        log_width: ``(levels, leaves)``.
        leaf: The leaf of each elastic atom in use.
    """

    borders: Tensor
    shift: Tensor
    log_width: Tensor
    leaf: Tensor


def no_tree(tables: Tables) -> TreeTables:
    """Two leaves that every token is in: their bonus is 0."""
    elastic = len(tables.codes) - tables.core_atoms
    borders, shift = torch.zeros(len(tables.offset), 4), torch.full((4,), BEYOND)
    return TreeTables(borders, shift, torch.zeros(1, 2), torch.zeros(elastic, dtype=torch.long))


def release_content(shared: SharedAdapter, config: HimalayaConfig) -> dict[str, Tensor]:
    """What the adapter's release file holds, packed anew if it was loaded from a folder that can be trained on."""
    if shared.packed is not None:
        return {name: tensor for name, tensor in shared.packed.items() if name != CHECKSUM}
    return pack(shared.state_dict(), config)


def become_release(shared: SharedAdapter, config: HimalayaConfig) -> dict[str, Tensor]:
    """Give the adapter the values of its own release file; returns the content of that file."""
    content, state = release_content(shared, config), shared.state_dict()
    shared.load_state_dict({**state, **unpack(content, config, state)})
    return content


def make_tables(content: Mapping[str, Tensor], config: HimalayaConfig, tasks: Sequence[str]) -> Tables:
    """The tables of an adapter.

    Args:
        content: What its release file holds.
        config: Its configuration.
        tasks: The names of the tasks that the graphs are to know, in the order of their numbers.
    """
    kept = content["in_use"].nonzero().flatten()
    rows = torch.cat([kept, len(content["in_use"]) + kept, torch.tensor([2 * len(content["in_use"])])])
    if config.quantisation_bits == UNQUANTISED_BITS:
        codes = torch.cat([content[name] for name in ATOMS])[:, :, None]
        scale, minimum = torch.ones_like(codes[..., :1].float()), torch.zeros_like(codes[..., :1].float())
        smoothing = torch.ones(codes.shape[1])
        projection, heads = content["router.projection"].float(), content["router.head"]
        head_scale = torch.ones(len(heads))
    else:
        codes, scale, minimum = _coded_atoms(content, config)
        smoothing = content[SMOOTHING].float()
        parts = split_by_prefix(content, "router.projection.")[0]
        projection = parts["values"].float() * parts["scale"][:, None]
        heads, head_scale = content["router.head.values"], content["router.head.scale"]
    codes, scale, minimum = codes[kept], scale[kept], minimum[kept]
    lengths = ((codes.float() * scale + minimum).flatten(1) * smoothing).norm(dim=1).clamp_min(1e-12)[:, None, None]
    residual = config.norm_target == "residual"
    return Tables(
        projection=projection,
        offset=content["router.offset"].float(),
        heads=heads[rows],
        head_scale=head_scale[rows],
        task_codes=torch.stack([task_code(name, config.code_width) for name in tasks]),
        codes=codes,
        scale=scale / lengths,
        minimum=minimum / lengths,
        smoothing=smoothing,
        core_atoms=int((kept < config.core_atoms).sum()),
        tree=_tree_tables(content, config, kept[kept >= config.core_atoms] - config.core_atoms),
        most=min(config.expected_active_atoms, len(kept)),
        temperature=config.temperature_init * FINAL_TEMPERATURE_SHARE,
        fixed_gain=config.gain == "fixed",
        gain_factor=projection.shape[1] ** -0.5 if residual else 1.0,
    )


def _coded_atoms(content: Mapping[str, Tensor], config: HimalayaConfig) -> tuple[Tensor, Tensor, Tensor]:
    """int8 codes ``(k, G, g)``, scale and minimum ``(k, G, 1)`` of all atoms.

    A width that is no multiple of the group has a scale and a minimum for each column: all groups are then whole.
    """
    width = len(content[SMOOTHING])
    group = GROUP if width % GROUP == 0 else 1
    tiers = []
    for name, bits in zip(ATOMS, atom_bits(config), strict=True):
        parts = split_by_prefix(content, f"{name}.")[0]
        scale, minimum = parts["scale"].float(), parts["minimum"].float()
        if group == 1:
            scale, minimum = (one.repeat_interleave(GROUP, 1)[:, :width] for one in (scale, minimum))
        codes = unpack_codes(parts["codes"], len(scale) * width, bits).view(len(scale), -1, group)
        middle = 1 << bits - 1 if bits == 8 else 0  # the upper half of 8 bits does not fit into int8
        signed = (codes.short() - middle).to(torch.int8)
        tiers.append((signed, scale[..., None], (minimum + middle * scale)[..., None]))
    codes, scale, minimum = (torch.cat(parts) for parts in zip(*tiers, strict=True))
    return codes, scale, minimum


def _tree_tables(content: Mapping[str, Tensor], config: HimalayaConfig, elastic: Tensor) -> TreeTables | None:
    if "tree.path" not in content or content["tree.path"].shape[1] == 0:
        return None
    path, leaf = content["tree.path"].unique(dim=0, return_inverse=True)
    if len(path) == 1:
        return None
    axes, spread = content["tree.axes"], content["tree.spread"]
    ends = torch.full((len(axes), 1), torch.inf)
    thresholds = content["tree.thresholds"].sort(dim=1).values
    edges = torch.cat([-ends, thresholds, ends], dim=1)
    widths = (edges.diff(dim=1) / spread[:, None]).clamp_min(SMALLEST_WIDTH)
    log_widths = torch.log(-torch.expm1(-widths))
    latent, node = len(content["router.offset"]), torch.zeros(len(path), dtype=torch.long)
    maps, shifts, logs = [], [], []
    for child in path.unbind(1):
        along = torch.eye(latent)[:, axes[node]] / spread[node]
        maps.append(torch.stack([-along, along]))
        shifts.append(torch.stack([edges[node, child], -edges[node, child + 1]]) / spread[node])
        logs.append(log_widths[node, child])
        node = node * config.fanout + 1 + child
    borders = torch.stack(maps, 1).permute(2, 0, 1, 3).flatten(1)  # (p, 2, levels, leaves)
    return TreeTables(borders, torch.stack(shifts, 1).flatten().clamp_min(BEYOND), torch.stack(logs), leaf[elastic])
