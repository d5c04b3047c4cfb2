"""The gates of training as one Triton kernel: a hundred small operations otherwise, each a launch on a GPU."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


@triton.jit
def _sample(  # type: ignore[no-untyped-def]  # one program for each token
    logits,
    noise,
    hard,
    soft,
    expected,
    count,
    stride,
    temperature,
    BUDGET: tl.constexpr,
    LOG_BUDGET: tl.constexpr,
    LOG_TWICE_COUNT: tl.constexpr,
    NEWTON_STEPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    there = column < count
    scaled = tl.load(logits + row * stride + column, mask=there, other=float("-inf")) / temperature
    rest = scaled
    last_in = float("-inf")
    first_out = tl.max(rest, 0)
    for _ in tl.static_range(BUDGET):
        rest = tl.where(column == tl.argmax(rest, 0), float("-inf"), rest)
        last_in = first_out
        first_out = tl.max(rest, 0)
    low = tl.maximum(first_out - LOG_BUDGET, 0.0)
    high = tl.maximum(tl.maximum(last_in, first_out + LOG_TWICE_COUNT), 0.0)
    shift = tl.minimum(tl.maximum((last_in + first_out) / 2, low), high)
    for _ in tl.static_range(NEWTON_STEPS):
        gates = tl.sigmoid(scaled - shift)
        excess = tl.sum(gates, 0) - BUDGET
        low = tl.where(excess > 0, shift, low)
        high = tl.where(excess > 0, high, shift)
        newton = shift + excess / tl.maximum(tl.sum(gates * (1 - gates), 0), 1e-12)
        inside = (newton >= low) & (newton <= high)
        shift = tl.where(inside, newton, (low + high) / 2)
    shift = tl.where(tl.sum(tl.sigmoid(scaled), 0) > BUDGET, shift, 0.0)
    shifted = scaled - shift
    tl.store(expected + row, tl.minimum(tl.sum(tl.sigmoid(shifted), 0), BUDGET * 1.0))
    noisy = shifted + tl.load(noise + column, mask=there, other=0.0)
    tl.store(soft + row * count + column, tl.sigmoid(noisy), mask=there)
    largest = tl.argmax(noisy, 0)
    on = column == largest
    rest = tl.where(on, float("-inf"), noisy)
    for _ in tl.static_range(BUDGET - 1):
        place = tl.argmax(rest, 0)
        on = on | ((column == place) & (rest > 0))
        rest = tl.where(column == place, float("-inf"), rest)
    tl.store(hard + row * count + column, tl.where(on, 1.0, 0.0), mask=there)


class _RelaxedGates(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, logits: Tensor, noise: Tensor, most: int, temperature: float, newton_steps: int
    ) -> tuple[Tensor, Tensor]:
        count = logits.shape[-1]
        rows = logits.reshape(-1, count)  # a view of a slice of the router's outputs
        hard, soft, expected = (logits.new_empty(*logits.shape[:-1], width) for width in (count, count, 1))
        _sample[(len(rows),)](
            *(rows, noise, hard, soft, expected, count, rows.stride(0), temperature),
            BUDGET=most,
            LOG_BUDGET=math.log(most),
            LOG_TWICE_COUNT=math.log(2 * count),
            NEWTON_STEPS=newton_steps,
            COLUMNS=triton.next_power_of_2(count),
            num_warps=1,
        )
        context.save_for_backward(soft)
        context.temperature = temperature
        context.mark_non_differentiable(expected)
        return hard, expected

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (soft,) = context.saved_tensors
        return torch.ops.aten.sigmoid_backward(gradient / context.temperature, soft), None, None, None, None


def relaxed_gates(
    logits: Tensor, noise: Tensor, most: int, temperature: float, newton_steps: int
) -> tuple[Tensor, Tensor]:
    """`router.relaxed_gates` of 32-bit logits ``(..., k)`` on a CUDA device, with ``most < k``."""
    found: tuple[Tensor, Tensor] = _RelaxedGates.apply(logits, noise, most, temperature, newton_steps)
    return found
