r"""The anchored update (docs/method.md, "The update"): its formulas, and the vectors that all layers have by them.

A layer's output ``h`` gets :math:`h + r\,(v^\top h)` with :math:`\lVert r\rVert = 1` and
:math:`\lVert v\rVert \le c`, in units of the channels' sizes (`channels`). Both come from the layer's anchor and
from at most three of the task's atoms.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from himalaya_adapter.methods.kept import Kept, full_precision

from .channels import sizes_of
from .config import HimalayaConfig
from .dictionary import Dictionary

# A trained number is an atom's entry times sqrt(width / this). A step of Adam then moves an atom by sqrt(this) times
# the learning rate, whatever the width.
REFERENCE_WIDTH = 4096
Vectors = list[tuple[Tensor, Tensor]]  # of each layer


def scaled(parameter: Tensor) -> Tensor:
    """The atoms ``(k, d)`` that a trained parameter ``(k, d)`` stands for, each of norm at most 1."""
    return bounded(parameter * (REFERENCE_WIDTH / parameter.shape[-1]) ** 0.5)


def unscaled(atoms: Tensor) -> Tensor:
    """The parameter that stands for atoms ``(k, d)``: the inverse of `scaled`."""
    return atoms * (atoms.shape[-1] / REFERENCE_WIDTH) ** 0.5


def bounded(rows: Tensor, most: float = 1.0) -> Tensor:
    """Rows ``(..., d)``, each scaled back to norm ``most`` where it is longer."""
    return rows * (most / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(most))


def layer_anchors(core: Tensor, layers: int, seed: int) -> Tensor:
    """A unit vector for each layer, ``(L, d)``: the core's atoms ``(k_c, d)`` added up with signs from a seed."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (layers, len(core)), generator=generator, device="cpu") * 2.0 - 1.0
    return normalize(signs.to(core) @ core, dim=-1)


def layer_codes(layers: int, atoms: int, active: int, seed: int) -> Tensor:
    r"""Which atoms act in which layer, and with which sign: ``(L, k)``, ``active`` entries
    :math:`\pm 1/\sqrt{\text{active}}` in each row.

    Every atom acts in as many layers as any other, to one.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    codes = torch.zeros(layers, atoms)
    acted = torch.zeros(atoms)
    for code in codes:
        # Those that have acted least, in random order.
        chosen = (acted + torch.rand(atoms, generator=generator) / 2).argsort()[:active]
        acted[chosen] += 1
        code[chosen] = (torch.randint(0, 2, (active,), generator=generator) * 2.0 - 1.0) / active**0.5
    return codes


def update_vectors(anchors: Tensor, codes: Tensor, atoms: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    r"""The two vectors of every layer's update.

    With :math:`q = \sum_j x_j a_j`: :math:`r = (\rho + q)/\lVert\rho + q\rVert` and :math:`v = \rho - q - r`, scaled
    back to norm ``bound``. For atoms that are zero ``v`` is exactly zero; its derivative by the atoms is not.

    Args:
        anchors: :math:`\rho`, unit vectors ``(L, d)``.
        codes: :math:`x`, ``(L, k)``.
        atoms: :math:`a`, ``(..., k, d)``.
        bound: Largest norm of ``v``.

    Returns:
        ``r`` and ``v``, each ``(..., L, d)``.
    """
    moves = codes @ atoms
    # The anchor goes the same way as r, so that rounding cancels too.
    unmoved = normalize(anchors + torch.zeros_like(moves), dim=-1)
    write = normalize(anchors + moves, dim=-1)
    return write, bounded(unmoved - moves - write, bound)


def edited(hidden_states: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """:math:`h + r (v^T h)`.

    Args:
        hidden_states: ``(b, s, d)``, or ``(n, d)``.
        write: ``r``, ``(d,)``, or one for each row of the batch, ``(b, 1, d)``.
        read: ``v`` as a column, ``(d, 1)``, or ``(b, d, 1)``.
    """
    return torch.addcmul(hidden_states, hidden_states @ read, write)


class AnchoredUpdate:
    """The vectors of all layers. It stores nothing: anchors and codes follow from the core and a seed.

    Args:
        config: The adapter's.
        layers: How many there are.
        dictionary: Whose core the anchors are made of.
    """

    def __init__(self, config: HimalayaConfig, layers: int, dictionary: Dictionary) -> None:
        self.config, self.layers, self.dictionary = config, layers, dictionary
        self.codes = layer_codes(layers, config.atoms_per_task, config.active_atoms, config.seed)
        self._anchors: Kept[Tensor] = Kept()
        self._each_layer: Kept[Vectors] = Kept()

    @property
    def anchors(self) -> Tensor:
        """The layers' anchors, ``(L, d)``, in float32."""
        core = self.dictionary.core_atoms
        return self._anchors.get(lambda: layer_anchors(core(), self.layers, self.config.seed), self.dictionary.core)

    def vectors(self, atoms: Tensor, sizes: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Write and read vectors of all layers, each ``(..., L, d)``.

        Args:
            atoms: ``(..., k, d)``.
            sizes: Of the channels, ``(d,)``; without them the vectors are in units of these.
        """
        with full_precision(atoms):
            write, read = update_vectors(self.anchors, self.codes.to(atoms), atoms, self.config.norm_bound)
            return write * sizes, read / sizes

    def each_layer(self, atoms: Tensor, channels: Tensor, dtype: torch.dtype) -> Vectors:
        """Write and read vector of each layer as `edited` takes them, made once for the same atoms and channels."""

        def made() -> Vectors:
            write, read = (one.to(dtype) for one in self.vectors(atoms, sizes_of(channels)))
            # Beside L and d there is perhaps a row, and now a token.
            return list(zip(write[..., None, :].unbind(-3), read[..., None].unbind(-3), strict=True))

        return self._each_layer.get(made, atoms, channels, given=dtype)
