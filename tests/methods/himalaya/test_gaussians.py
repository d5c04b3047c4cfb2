"""The memory that tells a prompt's task: what it recognises, what it does not, and what it depends on."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from himalaya_adapter.methods.task_inference.gaussians import (
    DIRECTIONS,
    ENOUGH,
    FEATURES,
    FEW,
    LIMIT,
    MEAN,
    PRIOR_TASK,
    RIDGE,
    SMALLEST,
    SPREAD,
    GaussianMemory,
)

WIDTH = 48
SEEDS = st.integers(0, 2**32 - 1)


def cloud(task: int, prompts: int, seed: int = 0, spread: float = 0.02) -> Tensor:
    """Features ``(prompts, q)`` around a mean that is the task's, most of them in a few directions."""
    own = torch.Generator().manual_seed(task)
    mean = 0.07 * torch.randn(FEATURES, generator=own)
    directions = torch.randn(5, FEATURES, generator=own)
    noise = torch.Generator().manual_seed(1000 * task + seed)
    within = torch.randn(prompts, 5, generator=noise) @ directions + 0.3 * torch.randn(
        prompts, FEATURES, generator=noise
    )
    return mean + spread * within


def filled(tasks: list[int], prompts: int = 100, rows: int = 16) -> GaussianMemory:
    """A memory that has learnt tasks, each in the row of its number."""
    memory = GaussianMemory(WIDTH, rows)
    for task in tasks:
        memory.observe(cloud(task, prompts))
        memory.learn(task)
    return memory


@given(order=st.permutations(range(6)))
def test_the_order_of_the_tasks_does_not_matter(order: list[int]) -> None:
    other = filled(order).state_dict()
    for name, tensor in in_order().items():
        assert torch.equal(tensor, other[name]), name


@cache
def in_order() -> dict[str, Tensor]:
    return filled(list(range(6))).state_dict()


@given(tasks=st.integers(1, 12))
def test_tasks_are_recognised_and_strangers_are_not(tasks: int) -> None:
    memory = filled(list(range(tasks)))
    queries = torch.cat([cloud(task, 20, seed=1) for task in range(tasks)])
    rows, confidences = memory.infer(queries)
    assert (rows == torch.arange(tasks).repeat_interleave(20)).double().mean() >= 0.97
    assert confidences.max() <= 1
    assert (confidences == 1).double().mean() >= 0.8
    strangers = torch.cat([cloud(task, 20) for task in range(12, 16)])
    assert (memory.infer(strangers)[1] < 1).double().mean() >= 0.9


def test_the_answer_is_that_of_dense_gaussians() -> None:
    memory, prompts = filled([0, 1, 2, 3]), torch.cat([cloud(task, 10, seed=2) for task in range(5)])
    means, covariances = [], []
    for row in range(4):
        means.append(MEAN.unpack(memory.means[row : row + 1])[0].double())
        rows = SPREAD.unpack(memory.spreads[row]).double()
        covariances.append(rows[:-1].T @ rows[:-1] + (rows[-1].square() + SMALLEST).diag())
    one, within = torch.eye(FEATURES).double(), torch.stack(covariances).mean(0)
    variance = within.trace() / FEATURES
    centre = torch.stack(means).mean(0)
    gaps = torch.stack(means) - centre
    total = within + gaps.T @ gaps / 4
    inverse = torch.linalg.inv(total + (RIDGE + PRIOR_TASK / 4) * variance * one)
    without_prior = torch.linalg.inv(total + RIDGE * variance * one)
    inverses = [torch.linalg.inv(each + RIDGE * variance * one) for each in covariances]

    def distance(point: Tensor, mean: Tensor, precision: Tensor) -> float:
        return float((point - mean) @ precision @ (point - mean)) / FEATURES

    near = sum(float((c @ i).trace()) for c, i in zip(covariances, inverses, strict=True)) / 4 / FEATURES
    far = float((total @ inverse).trace()) / FEATURES
    allowed = LIMIT * float((total @ without_prior).trace()) / FEATURES * (1 + FEW / 120)
    found, confidences = memory.infer(prompts)
    for point, row, confidence in zip(prompts.double(), found.tolist(), confidences.tolist(), strict=True):
        own = [distance(point, mean, each) for mean, each in zip(means, inverses, strict=True)]
        excess = min(own) - distance(point, centre, inverse) - (near - far)
        assert row == own.index(min(own))
        assert confidence == pytest.approx(allowed / max(excess, allowed), rel=1e-3)


def test_a_spread_is_kept_in_its_largest_directions_and_one_number() -> None:
    memory, points = filled([0]), cloud(0, 100)
    wanted = torch.cov(points.T, correction=0).double()
    rows = SPREAD.unpack(memory.spreads[0]).double()
    kept = rows[:-1].T @ rows[:-1] + rows[-1].square().diag()
    assert rows.shape == (DIRECTIONS + 1, FEATURES)
    assert float(kept.trace() / wanted.trace()) == pytest.approx(1, abs=0.2)
    assert (kept - wanted).norm() < 0.6 * wanted.norm()  # in 2 bits
    torch.testing.assert_close(rows[-1], rows[-1].mean().expand(FEATURES), rtol=1e-3, atol=0)


@pytest.mark.parametrize("task", range(4))
def test_a_task_that_is_removed_leaves_nothing(task: int) -> None:
    memory, other = filled([0, 1, 2, 3]), filled([one for one in range(4) if one != task])
    memory.remove(task)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, memory.state_dict()[name]), name
    memory.observe(cloud(task, 100))
    memory.learn(task)
    again = filled([0, 1, 2, 3]).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in memory.state_dict().items())


@pytest.mark.parametrize("prompts", [1, 2, 300])
def test_one_prompt_or_hundreds_make_a_task(prompts: int) -> None:
    memory = filled([0, 1])
    memory.observe(cloud(2, prompts))
    memory.learn(2)
    rows, confidences = memory.infer(torch.cat([cloud(task, 1) for task in range(3)]))
    assert rows.tolist() == [0, 1, 2]
    assert confidences.isfinite().all()
    assert int(memory.counts[2]) == min(prompts, 255)


def test_prompts_that_are_all_the_same_are_recognised() -> None:
    memory, prompt = GaussianMemory(WIDTH, 2), cloud(0, 1)
    memory.observe(prompt.repeat(20, 1))
    memory.learn(0)
    rows, confidences = memory.infer(torch.cat([prompt, cloud(1, 1)]))
    assert rows[0] == 0
    assert confidences[0] == 1 > confidences[1]


def test_a_memory_without_a_task_knows_nothing() -> None:
    memory = GaussianMemory(WIDTH, 4)
    memory.learn(0)  # no prompt was seen
    _, confidences = memory.infer(cloud(0, 3))
    assert confidences.tolist() == [0.0] * 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_answers_are_no_part_of_a_prompt(side: str) -> None:
    memory, generator = GaussianMemory(WIDTH, 2), torch.Generator().manual_seed(0)
    states, other = torch.randn(2, 10, WIDTH, generator=generator), torch.randn(2, 6, WIDTH, generator=generator)
    parts = [(other, torch.zeros(2, 6)), (states, torch.ones(2, 10))][:: 1 if side == "left" else -1]
    padded = memory.features(torch.cat([part for part, _ in parts], 1), torch.cat([on for _, on in parts], 1))
    torch.testing.assert_close(memory.features(states, torch.ones(2, 10)), padded, rtol=0, atol=1e-5)


@given(seed=SEEDS, scale=st.sampled_from([1e-3, 1.0, 1e3]), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_features_are_bounded_whatever_the_states(seed: int, scale: float, dtype: torch.dtype) -> None:
    states = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)
    memory, mask = GaussianMemory(WIDTH, 2), torch.ones(3, 5)
    features = memory.features(states, mask)
    assert features.norm(dim=1).max() <= 1.5
    torch.testing.assert_close(features, memory.features(states.float() * scale, mask), rtol=1e-4, atol=1e-4)


def test_what_is_not_finite_or_has_no_token_does_not_count() -> None:
    memory, states = GaussianMemory(WIDTH, 2), torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 5)
    states[1, 2] = torch.nan
    mask[2] = 0
    memory.observe_prompts(states, mask)
    assert memory.task_moment[-1, -1] == 1
    assert memory.task_moment.isfinite().all()


def test_a_cast_of_the_model_and_a_file_change_no_answer() -> None:
    memory, prompts = filled([0, 1, 2]), torch.cat([cloud(task, 5, seed=3) for task in range(4)])
    rows, confidences = memory.infer(prompts)
    loaded = GaussianMemory(WIDTH, 16)
    loaded.load_state_dict(load(save(memory.state_dict())))
    for other in (loaded, memory.half()):
        assert torch.equal(other.infer(prompts)[0], rows)
        assert torch.equal(other.infer(prompts)[1], confidences)


def test_its_size_depends_on_the_number_of_rows_alone() -> None:
    sizes = [sum(one.nbytes for one in GaussianMemory(width, 10).state_dict().values()) for width in (16, 4096)]
    assert sizes[0] == sizes[1]
    more = sum(one.nbytes for one in GaussianMemory(16, 11).state_dict().values())
    assert more - sizes[0] == MEAN.row_bytes + (DIRECTIONS + 1) * SPREAD.row_bytes + 1
    assert filled([0]).has_enough is False
    memory = GaussianMemory(WIDTH, 2)
    memory.observe(cloud(0, ENOUGH))
    assert memory.has_enough


def test_mixed_precision_changes_no_answer() -> None:
    memory, prompts = filled([0, 1, 2]), torch.cat([cloud(task, 5, seed=3) for task in range(4)])
    states, mask = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0)), torch.ones(2, 5)
    wanted, features = memory.infer(prompts), memory.features(states, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(memory.features(states, mask), features)
        assert all(torch.equal(*pair) for pair in zip(memory.infer(prompts), wanted, strict=True))


def test_a_task_that_is_learnt_further_is_still_known_by_its_first_prompts() -> None:
    """The second prompts are of another form; both together are known as if they had been seen at once."""
    memory, once = filled([0, 1, 2]), filled([1, 2])
    memory.observe(cloud(9, 20))
    memory.learn(0)
    once.observe(torch.cat([cloud(0, 100), cloud(9, 20)]))
    once.learn(0)
    assert memory.counts[0] == once.counts[0] == 120
    for task, form in ((0, 0), (0, 9), (1, 1)):
        for one in (memory, once):
            rows, confidences = one.infer(cloud(form, 40, seed=5))
            assert (rows == task).double().mean() > 0.9
            assert (confidences == 1).double().mean() > 0.8
