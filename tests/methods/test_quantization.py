"""Codes of few bits, smoothed groups and int8 rows: lossless where they must be, close where they may be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from himalaya_adapter.methods.quantization import (
    GROUP,
    column_smoothing,
    dequantise_matrix,
    dequantise_rows,
    pack_codes,
    quantise_matrix,
    quantise_rows,
    unpack_codes,
)

SEEDS = st.integers(0, 2**32 - 1)
BITS = st.integers(2, 8)


def smooth_rounding(matrix: torch.Tensor, bits: int) -> torch.Tensor:
    """The matrix as it comes back when it is divided by its columns' smoothing before it is stored."""
    smoothing = column_smoothing(matrix).float()
    return dequantise_matrix(quantise_matrix(matrix / smoothing, bits), bits, matrix.shape[1]) * smoothing


def random_matrix(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@given(seed=SEEDS, bits=BITS, count=st.integers(0, 70))
def test_packed_codes_come_back_and_take_bits_bytes_for_eight(seed: int, bits: int, count: int) -> None:
    codes = torch.randint(1 << bits, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count // 8) * bits
    unpacked = unpack_codes(packed, count, bits)
    assert unpacked.dtype == torch.uint8
    assert torch.equal(unpacked, codes)


def test_the_layout_of_three_bits_is_the_documented_one() -> None:
    """Files outlive the code that wrote them: the first code lies in the lowest bits, bytes ascend."""
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0], dtype=torch.uint8)
    word = sum(int(code) << 3 * place for place, code in enumerate(codes))
    assert pack_codes(codes, 3).tolist() == list(word.to_bytes(3, "little"))


@given(seed=SEEDS, bits=BITS, rows=st.integers(1, 6), width=st.integers(1, 150))
def test_every_entry_is_within_half_a_step(seed: int, bits: int, rows: int, width: int) -> None:
    matrix = normalize(random_matrix(seed, rows, width))
    parts = quantise_matrix(matrix, bits)
    groups = -(-width // GROUP)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "codes": (-(-rows * width // 8) * bits,),
        "scale": (rows, groups),
        "minimum": (rows, groups),
    }
    step = parts["scale"].float().repeat_interleave(GROUP, dim=1)[:, :width]
    error = (dequantise_matrix(parts, bits, width) - matrix).abs()
    # A float16 step or minimum may be off by 2**-11 of itself; that of the step adds up over the range.
    minimum = parts["minimum"].float().abs().repeat_interleave(GROUP, dim=1)[:, :width]
    assert (error <= step * (0.5 + 2.0**bits * 2**-11) + minimum * 2**-11 + 1e-6).all()


@given(bits=BITS, value=st.sampled_from([0.0, 1.0, -0.25, 1e-12]))
def test_constant_and_zero_columns_and_rows_are_safe(bits: int, value: float) -> None:
    matrix = torch.full((3, 70), value)
    matrix[:, 5] = 0
    matrix[1] = 0
    restored = smooth_rounding(matrix, bits)
    assert restored.isfinite().all()
    levels = (1 << bits) - 1
    torch.testing.assert_close(restored, matrix, rtol=2e-3, atol=0.51 * abs(value) / levels + 1e-7)


def test_smoothing_keeps_the_direction_of_rows_with_large_columns() -> None:
    """A few columns ten times as large as their neighbours, as language models have: the reason for smoothing."""
    matrix = random_matrix(0, 40, 512)
    matrix[:, ::37] *= 10
    matrix = normalize(matrix)
    assert _cosine(smooth_rounding(matrix, 3), matrix) > _cosine(_without_smoothing(matrix), matrix) + 0.005


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one, other, dim=1).mean().item()


def _without_smoothing(matrix: torch.Tensor) -> torch.Tensor:
    """Round to 3 bits between the smallest and largest entry of each group, nothing else."""
    groups = matrix.unflatten(1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 7
    return (low + ((groups - low) / step).round() * step).flatten(1)


@pytest.mark.parametrize("width", [576, 4096])
def test_three_bits_keep_the_directions_of_random_normalize(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What counts of an atom is its direction. The bounds are what was measured, less a margin."""
    rows = normalize(random_matrix(0, 40, width))
    cosines = {bits: _cosine(smooth_rounding(rows, bits), rows) for bits in (2, 3, 4, 8)}
    with capsys.disabled():
        print(f"\nmean cosine of 40 unit rows of width {width} by bits:", {b: round(c, 5) for b, c in cosines.items()})
    assert cosines[2] > 0.90
    assert 0.975 < cosines[3] < 0.995  # above: not 3 bits
    assert cosines[4] > 0.994
    assert cosines[8] > 0.9999


@given(seed=SEEDS, scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_int8_rows_are_within_half_a_step_of_their_own_row(seed: int, scale: float) -> None:
    rows = (random_matrix(seed, 5, 24) * torch.logspace(-3, 3, 5)[:, None] * scale).view(5, 4, 6)
    rows[2] = 0
    parts = quantise_rows(rows)
    assert parts["values"].dtype == torch.int8
    assert parts["values"].shape == rows.shape
    restored = dequantise_rows(parts)
    step = rows.abs().amax((1, 2), keepdim=True) / 127
    assert ((restored - rows).abs() <= 0.5001 * step).all()
    assert (restored[2] == 0).all()
    assert torch.equal(quantise_rows(-rows)["values"], -parts["values"])
