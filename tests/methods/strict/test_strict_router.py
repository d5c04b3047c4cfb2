"""Task codes, the exact gate budget, hard gates and the latent directions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from himalaya_adapter.methods.himalaya_strict.router import (
    HyperRouter,
    budget_shift,
    final_gates,
    hard_gates,
    latent_width,
    relaxed_gates,
    task_code,
)

ATOMS = 40
BUDGET = 3
SEEDS = st.integers(0, 2**32 - 1)
TEMPERATURES = st.sampled_from([0.01, 0.1, 0.5, 1.0, 3.0, 10.0])
# From all equal to far beyond anything that a trained head puts out.
SPREADS = st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0, 100.0, 1e4])
SHIFTS = st.sampled_from([-1e3, -10.0, -3.0, 0.0, 3.0, 10.0, 1e3])


def random_logits(seed: int, spread: float, shift: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, ATOMS, generator=generator, dtype=torch.float64).mul(spread).add(shift).to(dtype)


@given(seed=SEEDS, spread=SPREADS, shift=SHIFTS, temperature=TEMPERATURES)
def test_the_budget_is_never_exceeded_and_is_used_up_where_the_gates_are_shifted(
    seed, spread, shift, temperature
) -> None:
    for dtype in (torch.float32, torch.float64):
        logits = random_logits(seed, spread, shift, dtype)
        gates, expected = relaxed_gates(logits, torch.zeros(ATOMS, dtype=dtype), BUDGET, temperature)
        assert gates.isfinite().all()
        assert (gates.sum(-1) <= BUDGET).all()
        assert (expected <= BUDGET).all()
    used_up = torch.sigmoid(logits / temperature).sum(-1, keepdim=True).clamp_max(BUDGET)
    torch.testing.assert_close(expected, used_up, rtol=0, atol=1e-5)
    # Before it is cut off, which hides a shift that has not converged. 32 bits do not resolve extreme logits.
    total = torch.sigmoid((logits - budget_shift(logits, BUDGET, temperature)) / temperature).sum(-1)
    tight = torch.sigmoid(logits / temperature).sum(-1) > BUDGET
    torch.testing.assert_close(total[tight], torch.full_like(total[tight], BUDGET), rtol=0, atol=1e-5)


@given(seed=SEEDS, spread=st.floats(0, 10), shift=st.floats(-10, 10), temperature=st.floats(0.1, 3))
def test_the_budget_is_used_up_in_32_bits_over_the_range_of_trained_heads(seed, spread, shift, temperature) -> None:
    logits = random_logits(seed, spread, shift)
    total = torch.sigmoid((logits - budget_shift(logits, BUDGET, temperature)) / temperature).sum(-1)
    expected = torch.sigmoid(logits / temperature).sum(-1).clamp_max(BUDGET)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-3)


@given(seed=SEEDS, spread=SPREADS, shift=SHIFTS, temperature=TEMPERATURES)
def test_the_shift_is_zero_where_the_budget_is_slack(seed, spread, shift, temperature) -> None:
    logits = random_logits(seed, spread, shift, torch.float64)
    found = budget_shift(logits, BUDGET, temperature)[:, 0]
    slack = torch.sigmoid(logits / temperature).sum(-1) <= BUDGET
    assert (found >= 0).all()
    assert (found[slack].abs() <= 1e-12 * temperature).all()
    assert (found[~slack] > 0).all()


def test_the_shift_is_the_root_of_the_budget_equation() -> None:
    """Against plain bisection with 200 steps in 64 bits."""
    logits = random_logits(0, 5.0, 2.0, torch.float64)
    low, high = torch.zeros(8, 1, dtype=torch.float64), torch.full((8, 1), 100.0, dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        over = torch.sigmoid((logits - middle) / 0.7).sum(-1, keepdim=True) > BUDGET
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    torch.testing.assert_close(budget_shift(logits, BUDGET, 0.7), high, rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_the_relaxed_gates_and_the_shift_has_none() -> None:
    logits = random_logits(1, 2.0, 0.0, torch.float64).requires_grad_()
    noise = torch.randn(ATOMS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(ATOMS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (relaxed_gates(logits, noise, BUDGET, 0.7)[0] * weights).sum().backward()
    soft = torch.sigmoid((logits.detach() - budget_shift(logits, BUDGET, 0.7)) / 0.7 + noise)
    torch.testing.assert_close(logits.grad, weights * soft * (1 - soft) / 0.7)


@given(seed=SEEDS, spread=SPREADS, shift=SHIFTS, most=st.integers(1, 5))
def test_hard_gates_are_the_largest_positive_scores(seed, spread, shift, most) -> None:
    scores = random_logits(seed, spread, shift)
    gates = hard_gates(scores, most)
    count = gates.sum(-1)
    assert set(gates.unique().tolist()) <= {0.0, 1.0}
    assert (count >= 1).all()
    assert (count <= most).all()
    for row, on in zip(scores, gates.bool(), strict=True):
        expected = sorted((score for score in row.tolist() if score > 0), reverse=True)[:most] or [row.max().item()]
        assert sorted(row[on].tolist(), reverse=True) == expected


@given(
    seed=SEEDS,
    spread=SPREADS,
    shift=SHIFTS,
    temperature=st.floats(0.05, 3),
    most=st.integers(1, 5),
    atoms=st.sampled_from([3, 5, ATOMS]),
)
def test_the_gates_of_inference_are_those_of_the_shifted_logits(seed, spread, shift, temperature, most, atoms) -> None:
    """Outside ties: where an atom lies at the shift itself, rounding decides."""
    logits = random_logits(seed, spread, shift, torch.float64)[:, :atoms]
    shifted = logits - budget_shift(logits, most, temperature)
    apart = logits.sort(-1).values.diff(dim=-1).amin(-1) > 1e-9
    clear = apart & (shifted.abs().amin(-1) > 1e-6)
    assert torch.equal(final_gates(logits, most, temperature)[clear], hard_gates(shifted, most)[clear])


def test_atoms_of_equal_logits_share_the_budget_and_one_opens_without_any_positive_logit() -> None:
    gates = final_gates(torch.tensor([[2.0, 2.0, 2.0, 2.0], [5.0, 4.0, 4.5, -1.0], [-3.0, -2.0, -1.0, -9.0]]), 3, 0.1)
    assert gates[1:].tolist() == [[1, 1, 1, 0], [0, 0, 1, 0]]
    assert 1 <= gates[0].sum() <= 3


def test_task_codes_come_from_the_name_alone() -> None:
    code = task_code("sentiment", 32)
    assert code.sign()[:8].tolist() == [1, 1, -1, -1, -1, 1, 1, 1]
    torch.testing.assert_close(code.abs(), torch.full((32,), 32**-0.5))
    assert torch.equal(code, task_code("sentiment", 32))
    assert code.norm().item() == pytest.approx(1, abs=1e-6)
    names = [f"task {index}" for index in range(50)]
    codes = torch.stack([task_code(name, 32) for name in names])
    assert (codes[:, 0] > 0).all()
    overlaps = (codes @ codes.T - torch.eye(50)).abs()
    assert overlaps.max() < 0.75  # no two of 50 names share a code; random codes overlap by 1/sqrt(32) each


def test_names_of_other_scripts_have_codes_of_their_own() -> None:
    assert not torch.allclose(task_code("тональность", 32), task_code("тема", 32))


def test_the_latent_width_of_the_source_backbone_is_six() -> None:
    assert latent_width(width=4096, atoms=40, code_width=32, hidden_params=45_000) == 6
    assert 4096 * 6 + (2 * 40 + 1) * 7 * 32 == 42_720


@given(
    width=st.integers(1, 5000),
    atoms=st.integers(1, 64),
    code_width=st.integers(1, 64),
    hidden_params=st.integers(1, 100_000),
)
def test_the_latent_width_is_the_largest_that_fits(width, atoms, code_width, hidden_params) -> None:
    def parameters(latent: int) -> int:
        return width * latent + (2 * atoms + 1) * (latent + 1) * code_width

    if parameters(1) > hidden_params:
        with pytest.raises(ValueError, match=f"at least {parameters(1)} needed"):
            latent_width(width, atoms, code_width, hidden_params)
        return
    latent = latent_width(width, atoms, code_width, hidden_params)
    assert 1 <= latent <= width
    assert parameters(latent) <= hidden_params
    assert latent == width or parameters(latent + 1) > hidden_params


def test_a_fresh_router_has_no_gain_for_any_task_or_token() -> None:
    router = HyperRouter(atoms=ATOMS, width=16, latent=4, code_width=8, seed=0)
    latents = torch.cat([torch.randn(100, 4), torch.ones(100, 1)], dim=1)
    for name in ("a", "b"):
        outputs = latents @ router.task_head(task_code(name, 8)).T
        assert torch.equal(outputs[:, -1], torch.zeros(100))


def test_a_task_head_is_the_head_applied_to_feature_times_code() -> None:
    """``H ([z; 1] ⊗ c)``, formed densely."""
    router = HyperRouter(atoms=5, width=16, latent=4, code_width=8, seed=0)
    torch.nn.init.normal_(router.head)
    code, latents = task_code("a", 8), torch.cat([torch.randn(3, 4), torch.ones(3, 1)], dim=1)
    features = torch.stack([torch.kron(latent, code) for latent in latents])
    dense = features @ router.head.detach().flatten(1).T
    torch.testing.assert_close(latents @ router.task_head(code).detach().T, dense, rtol=1e-5, atol=1e-6)


def test_the_projection_finds_the_principal_directions_at_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q.T
    deviations = torch.tensor([9.0, 6.0, 4.0] + [0.1] * 13, dtype=torch.float64)
    inputs = torch.randn(5000, 16, generator=generator, dtype=torch.float64) * deviations @ axes + 2.0
    router = HyperRouter(atoms=4, width=16, latent=3, code_width=4, seed=0)
    router.fit_projection(inputs.float())
    found = torch.nn.functional.normalize(router.projection.double(), dim=-1)
    torch.testing.assert_close((found @ axes[:3].T).abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.05)
    latents = inputs.float() @ router.projection.T - router.offset
    torch.testing.assert_close(latents.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(0), torch.ones(3), rtol=0, atol=1e-2)


def test_fitting_the_projection_to_the_same_inputs_gives_the_same_projection() -> None:
    inputs = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    routers = [HyperRouter(atoms=4, width=16, latent=3, code_width=4, seed=seed) for seed in (0, 1)]
    for router, order in zip(routers, (torch.arange(100), torch.arange(99, -1, -1)), strict=True):
        router.fit_projection(inputs[order])
    torch.testing.assert_close(routers[0].projection, routers[1].projection, rtol=1e-4, atol=1e-4)


def test_fewer_tokens_than_latent_directions_leave_a_finite_projection() -> None:
    router = HyperRouter(atoms=4, width=16, latent=6, code_width=4, seed=0)
    router.fit_projection(torch.randn(3, 16))
    assert router.projection.isfinite().all()
    assert router.offset.isfinite().all()
    assert torch.tanh(torch.randn(3, 16) @ router.projection.T - router.offset).isfinite().all()
