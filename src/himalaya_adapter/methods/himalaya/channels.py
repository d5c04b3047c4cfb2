"""How large the channels of the residual stream are in the frozen model (docs/method.md, "Channels").

A few channels of a language model can be hundreds of times as large as the others (massive activations, Sun et al.
2024, arXiv:2402.17762). An update that takes all channels alike changes little but those.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, distributed, nn

from himalaya_adapter.methods.task_inference.frozen import as_frozen

# Random tokens that the sizes are measured on; the first of a row, on which attention rests, is left out.
ROWS, LENGTH = 4, 33
# A size is stored as an int8 logarithm, in steps of an eighth of an octave.
STEPS = 8
LARGEST = 127
SMALLEST_SQUARE = 2.0**-32  # of a channel, where their mean is 1: one that is always zero is as large as that
# Root of the sizes: half way between channels as they are, where the large ones rule, and channels made alike.
EXPONENT = 0.5


def sizes_of(codes: Tensor) -> Tensor:
    """The channels' sizes ``(d,)`` that int8 codes stand for; 1 where nothing was measured."""
    return torch.exp2(codes.float() / STEPS)


@torch.no_grad()
def measure(model: nn.Module, layers: Sequence[nn.Module], seed: int) -> Tensor:
    """Codes of the channels' sizes in the outputs of decoder layers, ``(d,)``, int8; the same in all processes.

    The tokens are random, so nothing depends on anybody's data. Each layer counts alike, whatever its norm.

    Args:
        model: A language model of transformers.
        layers: Its layers.
        seed: Of the tokens.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(seed + 3)
    tokens = torch.randint(0, embeddings.num_embeddings, (ROWS, LENGTH), generator=generator, device="cpu")
    first = getattr(model.config, "bos_token_id", None)
    if isinstance(first, int) and first < embeddings.num_embeddings:
        tokens[:, 0] = first
    squares: list[Tensor] = []

    def look(_: nn.Module, __: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        rows = states.flatten(0, -3)[:, 1:].flatten(0, 1) if states.dim() > 2 else states
        squares.append(rows.double().square().mean(0))

    with ExitStack() as afterwards:
        afterwards.enter_context(as_frozen(model))
        for layer in layers:
            afterwards.callback(layer.register_forward_hook(look).remove)
        model.base_model(tokens.to(embeddings.weight.device))  # type: ignore[operator]
    mean = torch.stack([(one / one.mean()).to(squares[0].device) for one in squares]).mean(0)
    logarithms = mean.clamp_min(SMALLEST_SQUARE).log2() * EXPONENT / 2
    codes = ((logarithms - logarithms.mean()) * STEPS).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast(codes, 0)
    return codes
