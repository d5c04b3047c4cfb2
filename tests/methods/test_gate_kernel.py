"""The Triton kernel gives the gates that the plain operations give: on a CUDA device, or in Triton's interpreter."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed: it comes with torch for CUDA")
if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 in the environment", allow_module_level=True)

from himalaya_adapter.methods.himalaya import gate_kernel, router

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, ATOMS = 6, 21


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0.1, 20),
    shift=st.floats(-20, 20),
    temperature=st.floats(0.1, 2),
    most=st.integers(1, 4),
)
def test_gates_expectation_and_gradient_are_those_of_the_plain_operations(
    seed: int, spread: float, shift: float, temperature: float, most: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(2, TOKENS // 2, ATOMS, generator=generator) * spread + shift
    noise = torch.logit(torch.rand(ATOMS, generator=generator).clamp(1e-6, 1 - 1e-6))
    weights = torch.randn(start.shape, generator=generator)
    # In 64 bits, which the kernel does not serve.
    plain = start.double().requires_grad_()
    gates, expected = router.relaxed_gates(plain, noise.double(), most, temperature)
    (gates * weights.double()).sum().backward()
    logits = start.to(DEVICE).requires_grad_()
    found, total = gate_kernel.relaxed_gates(logits, noise.to(DEVICE), most, temperature, router.NEWTON_STEPS)
    (found * weights.to(DEVICE)).sum().backward()
    noisy = start.double() - router.budget_shift(start.double(), most, temperature) + temperature * noise.double()
    ranked = noisy.sort(dim=-1, descending=True).values
    # Rounding may decide for scores that are almost 0, or for the last place among almost equal ones.
    clear = (noisy.abs().amin(-1) > 1e-3) & ((ranked[..., most - 1] - ranked[..., most]) > 1e-3)
    assert torch.equal(found.cpu()[clear].double(), gates.detach()[clear])
    assert ((found == 0) | (found == 1)).all()
    assert (found.sum(-1) <= most).all()
    torch.testing.assert_close(total.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits.grad.cpu().double(), plain.grad, rtol=1e-3, atol=1e-4)


def test_rows_of_any_length_and_a_slice_of_a_larger_tensor_are_served() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(5, 200, generator=generator)
    for count in (5, 16, 17, 83):
        part, noise = wide[:, 3 : 3 + count], torch.zeros(count)
        gates, expected = router.relaxed_gates(part.double(), noise.double(), 3, 0.7)
        found, total = gate_kernel.relaxed_gates(part.to(DEVICE), noise.to(DEVICE), 3, 0.7, router.NEWTON_STEPS)
        torch.testing.assert_close(found.cpu().double(), gates)
        torch.testing.assert_close(total.cpu().double(), expected, rtol=1e-5, atol=1e-5)
