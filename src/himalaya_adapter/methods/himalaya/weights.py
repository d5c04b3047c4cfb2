"""The LoRA whose factors are picked out of the task's atoms (docs/method.md, "In the weights").

As Uni-LoRA (Li et al. 2025, arXiv:2506.00799): every entry of a factor is one of the task's numbers, chosen by a seed
and divided by the square root of how many entries are expected to choose it, so that the map is near an isometry.
"""

from collections import defaultdict
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.kept import Kept
from himalaya_adapter.methods.linear_delta import LinearDeltaLayer

from .config import HimalayaConfig
from .layer import HimalayaLayer

# More than a model has: the seeds of two adapters' modules never meet.
MODULES = 1_000_003


class HashedLinear(LinearDeltaLayer, HimalayaLayer):
    """Adds :math:`B (A_0 + A) x` to the output of a linear module; ``A`` and ``B`` are made of the task's atoms.

    ``A_0`` is drawn from a seed and never moves: with atoms that are zero the update is exactly zero, and its
    derivative is not.
    """

    other_param_names = ("number", "anchors", "picks", "kept")

    def __init__(self, base_layer: nn.Linear, **quantization: Any) -> None:
        super().__init__(base_layer, **quantization)
        # Made from the seed again wherever the adapter is loaded, so in no file.
        self.anchors = BufferDict({}, persistent=False)
        self.picks = BufferDict({}, persistent=False)
        self.kept: defaultdict[str, Kept[list[tuple[Tensor, Tensor]]]] = defaultdict(Kept)

    def add_adapter(self, name: str, config: HimalayaConfig) -> None:
        """Draw the module's part of the map: ``A_0`` ``(R, in)``, and which number each entry is ``(R, in + out)``."""
        generator = torch.Generator().manual_seed(config.seed * MODULES + self.number[name])
        entries = config.rank, self.in_features + self.out_features
        adapter = self.shared[name]
        adapter.entries += config.rank * (self.in_features + self.out_features)
        self.picks[name] = torch.randint(adapter.atoms.numel(), entries, generator=generator, dtype=torch.int32)
        # Signs, as whole numbers: no cast of the model touches them.
        signs = torch.randint(0, 2, (config.rank, self.in_features), generator=generator, dtype=torch.int8)
        self.anchors[name] = signs * 2 - 1
        self._move_adapter_to_device_of_base_layer(name)

    def scale(self, name: str) -> float:
        """1: the factors are the whole update."""
        return 1.0

    def factors(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """As `factors_for`, without inputs.

        Raises:
            HimalayaError: Each prompt is answered as the task that it looks like.
        """
        if self.shared[name].infers_task:
            raise HimalayaError("each prompt chooses its task: call set_task(name) before the adapter is merged")
        return self.factors_for(name, None)

    def factors_for(self, name: str, x: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """``A_0 + A``, ``(R, in)``, and ``B``, ``(out, R)``.

        Where rows of inputs ``x`` ``(b, s, in)`` are answered as different tasks ``(b, R, in)`` and ``(b, out, R)``.

        Raises:
            HimalayaError: They are, and there is no ``x`` with rows.
        """
        adapter = self.shared[name]
        batch = len(x) if x is not None and x.dim() == 3 else 1
        atoms = adapter.answering_atoms(batch, first=self.number[name] == 0)

        def pick() -> list[tuple[Tensor, Tensor]]:
            # As numbers of size 1 from a vector of norm sqrt(d), and then an isometry.
            scale = (adapter.width * adapter.atoms.numel() / adapter.entries) ** 0.5
            picked = atoms.flatten(-2)[..., self.picks[name].long()] * scale
            down, up = picked.split([self.in_features, self.out_features], dim=-1)
            return [(self.anchors[name] / self.in_features**0.5 + down, up.mT)]

        return self.kept[name].get(pick, atoms)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT's ``convert_to_lora`` can write the adapter: exactly, at the adapter's rank."""
        return adapter_name in self.shared
