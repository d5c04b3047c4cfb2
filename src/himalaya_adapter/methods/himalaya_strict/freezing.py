"""One update for all tokens: what a frozen routing is as a matrix (docs/method.md, section 2)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .update import SharedUpdate

PER_TOKEN = (
    "HIMALAYA cannot be merged as it is: its update differs from token to token. Call freeze_routing(task) first, "
    "which gives all tokens one update, or keep the adapter attached."
)
BESIDE_THE_WEIGHTS = (
    "HIMALAYA cannot be merged with placement='residual_stream', frozen or not: its update, which differs from token "
    "to token, is added to the output of a {}, and no weight leads there from that module's input. Write a LoRA "
    "fitted to it with 'himalaya export RUN --format lora', or keep the adapter attached; freeze_routing(task) makes "
    "an adapter with placement='weights' mergeable."
)


def static_factors(shared: SharedUpdate, width: int, output_width: int) -> tuple[Tensor, Tensor]:
    r"""The frozen update :math:`\gamma\,r_m r_n^\top` of a linear module as the factors of a LoRA of rank 1.

    Args:
        shared: A frozen adapter.
        width: Inputs ``n`` of the module.
        output_width: Its outputs ``m``.

    Returns:
        ``A = r_n``, ``(1, n)``, and ``B = γ r_m``, ``(m, 1)``, in at least 32 bits.
    """
    with torch.no_grad():
        coefficients, gain = shared.static_routing()
        direction = coefficients @ shared.dictionary.atoms().to(coefficients.dtype)
        if shared.config.norm_target == "residual":
            gain = gain / shared.width**0.5
        return normalize(direction[:, :width]), gain * normalize(direction[:, :output_width]).T
