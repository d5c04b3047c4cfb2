"""The adapter of any method in few bits: by how much training has changed it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .packed_rows import GROUP
from .quantization import UNQUANTISED_BITS, dequantise_matrix, quantise_matrix

PACKED_FILE = "packed.safetensors"


class PackedAdapter:
    """Rounds an adapter when a task has been learnt, so that the task is scored as it is stored.

    What is stored is the difference from the fresh adapter, which the seed makes again: LoReFT's W, of which only the
    distance from R acts, and the random A of a LoRA lose no precision to what was never learnt.

    Args:
        model: A model with a fresh adapter.
        bits: Bits of a trained number: 2 to 8, or 16 for half precision.
    """

    def __init__(self, model: nn.Module, bits: int) -> None:
        self.bits = bits
        self.fresh = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}
        self.stored = pack({name: torch.zeros_like(tensor) for name, tensor in self.fresh.items()}, bits)

    @torch.no_grad()
    def round(self, model: nn.Module) -> None:
        """Replace the trained numbers by those that are stored."""
        parameters = trainable_parameters(model)
        fresh = {name: tensor.to(parameters[name].device) for name, tensor in self.fresh.items()}
        self.stored = pack({name: parameters[name] - tensor for name, tensor in fresh.items()}, self.bits)
        for name, change in unpack(self.stored, self.bits, fresh).items():
            parameters[name].copy_(fresh[name] + change)

    def save(self, folder: Path) -> None:
        """Write what is stored beside the adapter that training goes on from."""
        save_file(self.stored, folder / PACKED_FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.stored = load_file(folder / PACKED_FILE)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def pack(tensors: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Tensors as one row of numbers in few bits: no names, and a scale and a minimum for each 32 neighbours.

    Args:
        tensors: Of any shape. Each is divided by its largest magnitude first, which is kept in 32 bits.
        bits: 2 to 8, or 16 for half precision.
    """
    flat = [tensor.float().flatten() for tensor in tensors.values()]
    peaks = torch.stack([one.abs().amax() for one in flat])
    row = torch.cat([one / torch.where(peak > 0, peak, 1.0) for one, peak in zip(flat, peaks, strict=True)])
    if bits == UNQUANTISED_BITS:
        return {"peaks": peaks, "values": row.half()}
    return {"peaks": peaks} | quantise_matrix(row[None], bits, GROUP)


def unpack(packed: Mapping[str, Tensor], bits: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back, in the shapes and the precision of ``like``."""
    sizes = [tensor.numel() for tensor in like.values()]
    if bits == UNQUANTISED_BITS:
        row = packed["values"].float()
    else:
        row = dequantise_matrix(packed, bits, sum(sizes), GROUP)[0]
    found = zip(like.items(), row.split(sizes), packed["peaks"], strict=True)
    return {name: (part * peak).view_as(one).to(one) for (name, one), part, peak in found}
