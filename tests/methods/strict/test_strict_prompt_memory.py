"""The memory that recognises a prompt's task: what it recognises, what it does not, and what it depends on."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from himalaya_adapter.methods.himalaya_strict.prompt_memory import (
    PRIOR_PROMPTS,
    PRIOR_VARIANCE,
    RIDGE,
    TYPICAL,
    DiscriminantMemory,
)

WIDTH, CODE_WIDTH, VOCABULARY = 48, 32, 500
SEEDS = st.integers(0, 2**32 - 1)


def random_codes(count: int, seed: int = 0) -> Tensor:
    bits = torch.randint(0, 2, (count, CODE_WIDTH), generator=torch.Generator().manual_seed(seed))
    return (bits * 2 - 1) / CODE_WIDTH**0.5


def clusters(tasks: int, prompts: int, features: int, seed: int, spread: float = 0.1) -> Tensor:
    """Features ``(tasks, prompts, q)`` around random means, in 64 bits; the same seed has the same means."""
    means = torch.randn(tasks, 1, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = torch.Generator().manual_seed(seed + prompts)
    return means + spread * torch.randn(tasks, prompts, features, generator=noise, dtype=torch.float64)


def filled(clouds: Tensor, codes: Tensor, order: list[int] | None = None, slots: int = 64) -> DiscriminantMemory:
    """A memory in 64 bits, with 4 projections, that has learnt the clouds in the given order."""
    memory = DiscriminantMemory(WIDTH, CODE_WIDTH, projections=4, slots=slots).double()
    for index in range(len(clouds)) if order is None else order:
        memory.observe(clouds[index])
        memory.learn(codes[index])
    return memory


def prompt_embeddings(ids: Tensor) -> Tensor:
    """Token embeddings of very different lengths, as real ones have."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCABULARY, WIDTH, generator=generator) * torch.rand(VOCABULARY, 1, generator=generator) * 9
    return table[ids]


def templated(template: list[int], prompts: int, seed: int, length: int = 12) -> Tensor:
    """Token ids of prompts with random contents between a template's two halves."""
    body = torch.randint(100, VOCABULARY, (prompts, length), generator=torch.Generator().manual_seed(seed))
    frame = torch.tensor(template).expand(prompts, -1)
    return torch.cat([frame[:, :1], body, frame[:, 1:]], dim=1)


@given(seed=SEEDS, order=st.permutations(range(6)))
def test_the_order_of_the_tasks_does_not_matter(seed: int, order: list[int]) -> None:
    clouds, codes = clusters(6, 30, 12, seed), random_codes(6)
    one, other = filled(clouds, codes), filled(clouds, codes, order)
    torch.testing.assert_close(one.covariance, other.covariance, rtol=0, atol=1e-9)
    torch.testing.assert_close(one.means[order], other.means[:6], rtol=0, atol=1e-9)
    queries = clusters(6, 7, 12, seed).flatten(0, 1)
    for left, right in zip(one.infer(queries), other.infer(queries), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


@given(seed=SEEDS, tasks=st.integers(1, 40))
def test_tasks_are_recognised_with_confidence_and_strangers_without(seed: int, tasks: int) -> None:
    codes = random_codes(tasks)
    memory = filled(clusters(tasks, 60, 12, seed), codes)
    found, confidence = memory.infer(clusters(tasks, 20, 12, seed).flatten(0, 1))
    right = torch.isclose(found, codes.double().repeat_interleave(20, dim=0)).all(1)
    assert right.double().mean() >= 0.97
    assert confidence.min() >= 0
    assert confidence.max() <= 1
    assert confidence.mean() > 0.8
    strangers = 30 + clusters(5, 4, 12, seed + 1).flatten(0, 1)
    assert memory.infer(strangers)[1].max() < 0.01


def test_the_answer_is_that_of_a_dense_discriminant_analysis() -> None:
    clouds, codes = clusters(4, 50, 12, 1, spread=0.7), random_codes(4)
    queries = clusters(4, 25, 12, 1, spread=0.9).flatten(0, 1)
    spreads = [
        50 * torch.cov(cloud.T, correction=0) + PRIOR_PROMPTS * PRIOR_VARIANCE * torch.eye(12) for cloud in clouds
    ]
    within = sum(spreads) / (50 + PRIOR_PROMPTS) / 4 + RIDGE * torch.eye(12)
    gaps = queries[:, None] - clouds.mean(1)
    # Divided by the number of all features and of the constant, whose gap is 0.
    distance, task = torch.einsum("btq,qr,btr->bt", gaps, torch.linalg.inv(within), gaps).div(13).min(1)
    found, confidence = filled(clouds, codes).infer(queries)
    torch.testing.assert_close(found, codes[task].double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(confidence, (TYPICAL / distance).clamp(max=1), rtol=0, atol=1e-8)


def test_a_task_with_more_prompts_does_not_weigh_more() -> None:
    clouds, codes = clusters(3, 40, 12, 2), random_codes(3)
    once = filled(clouds, codes)
    more = DiscriminantMemory(WIDTH, CODE_WIDTH, projections=4).double()
    for index, cloud in enumerate(clouds):
        for _ in range(1 + 9 * index):  # batch by batch, as in training
            for batch in cloud.split(7):
                more.observe(batch)
        more.learn(codes[index])
    # But for the prior, which counts less beside more prompts.
    share = PRIOR_PROMPTS / (40 + PRIOR_PROMPTS)
    largest = max(1.0, once.covariance.abs().max().item())
    torch.testing.assert_close(once.covariance, more.covariance, rtol=0, atol=3 * share * largest)
    torch.testing.assert_close(once.means, more.means, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_targets_are_ignored(side: str) -> None:
    memory = DiscriminantMemory(WIDTH, CODE_WIDTH)
    embeddings = prompt_embeddings(torch.arange(20).view(2, 10))
    other = prompt_embeddings(torch.arange(100, 112).view(2, 6))
    alone = memory.features(embeddings, torch.ones(2, 10))
    parts = [(other, torch.zeros(2, 6)), (embeddings, torch.ones(2, 10))][:: 1 if side == "left" else -1]
    padded = memory.features(torch.cat([part for part, _ in parts], 1), torch.cat([on for _, on in parts], 1))
    torch.testing.assert_close(alone, padded, rtol=0, atol=1e-5)


@given(seed=SEEDS, scale=st.sampled_from([1e-3, 1.0, 1e3]), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_features_are_bounded_and_blind_to_the_length_of_embeddings(seed, scale, dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(3, 5, WIDTH, generator=generator).to(dtype)
    memory = DiscriminantMemory(WIDTH, CODE_WIDTH)
    features = memory.features(embeddings, torch.ones(3, 5))
    assert features.abs().max() <= WIDTH**0.5
    scaled = memory.features(embeddings.float() * scale, torch.ones(3, 5))
    torch.testing.assert_close(features, scaled, rtol=1e-4, atol=1e-4)


def test_templates_are_recognised_from_embeddings() -> None:
    """Three tasks with the same kind of contents: one differs at its beginning only, one at its end only."""
    templates, codes = [[1, 2, 3], [4, 2, 3], [1, 2, 5]], random_codes(3)
    memory = DiscriminantMemory(WIDTH, CODE_WIDTH)
    for index, template in enumerate(templates):
        features = memory.features(prompt_embeddings(templated(template, 200, index)), torch.ones(200, 15))
        memory.observe(features)
        memory.learn(codes[index])
    for index, template in enumerate(templates):
        new = memory.features(prompt_embeddings(templated(template, 50, 10 + index)), torch.ones(50, 15))
        found, confidence = memory.infer(new)
        torch.testing.assert_close(found, codes[index].expand(50, -1))
        assert confidence.median() > 0.9
    stranger = memory.features(prompt_embeddings(templated([6, 7, 8], 50, 20)), torch.ones(50, 15))
    assert memory.infer(stranger)[1].max() < 0.7


def test_an_empty_memory_knows_nothing() -> None:
    memory = DiscriminantMemory(WIDTH, CODE_WIDTH)
    memory.learn(random_codes(1)[0])  # nothing observed
    embeddings = torch.cat([torch.zeros(1, 3, WIDTH), torch.ones(1, 3, WIDTH)])
    codes, confidence = memory.infer(memory.features(embeddings, torch.tensor([[1, 1, 1], [0, 0, 0]])))
    assert codes.shape == (2, CODE_WIDTH)
    assert not codes.any()
    assert not confidence.any()
    assert memory.tasks == 0


def test_one_prompt_is_enough_for_finite_answers() -> None:
    memory = DiscriminantMemory(WIDTH, CODE_WIDTH)
    features = memory.features(torch.zeros(1, 3, WIDTH), torch.zeros(1, 3))
    memory.observe(features)
    memory.learn(random_codes(1)[0])
    codes, confidence = memory.infer(torch.cat([features, features + 1]))
    assert torch.equal(codes, random_codes(1).expand(2, -1))
    assert confidence[0] == 1
    assert confidence[1] < 0.5


def test_a_thousand_tasks_take_the_bytes_of_one_and_the_latest_are_known() -> None:
    clouds, codes = clusters(1000, 5, 12, 3), random_codes(1000)
    sizes = []
    for tasks in (1, 1000):
        memory, file = filled(clouds[:tasks], codes[:tasks], slots=16), io.BytesIO()
        torch.save(memory.state_dict(), file)
        sizes.append(len(file.getvalue()))
    assert sizes[0] == sizes[1]
    found, _ = memory.infer(clouds[-16:, 0])
    torch.testing.assert_close(found, codes[-16:].double(), rtol=0, atol=1e-7)


def test_a_task_learnt_again_keeps_its_slot_and_gets_its_new_mean() -> None:
    clouds, codes = clusters(3, 40, 12, 4), random_codes(3)
    memory = filled(clouds, codes[[0, 1, 0]])
    assert memory.tasks == 2
    torch.testing.assert_close(memory.covariance / memory.closed, filled(clouds, codes).covariance / 3)
    found, _ = memory.infer(clouds[[2, 1], 0])
    torch.testing.assert_close(found, codes[[0, 1]].double(), rtol=0, atol=1e-7)


def test_the_projection_is_the_same_everywhere_and_not_stored() -> None:
    memory = DiscriminantMemory(4096, CODE_WIDTH)
    assert "signs" not in memory.state_dict()
    assert sum(tensor.numel() * tensor.element_size() for tensor in memory.state_dict().values()) <= 41_000
    embeddings = normalize(torch.ones(1, 1, 4096), dim=-1)
    expected = memory.signs.sum(-1).flatten() / 64  # sums of signs are exact
    torch.testing.assert_close(memory.features(embeddings, torch.ones(1, 1))[0], expected)
    assert memory.signs[:, 0, :8].tolist() == [
        [-1, 1, 1, -1, 1, 1, 1, 1],
        [-1, 1, 1, -1, -1, -1, 1, -1],
        [1, -1, 1, 1, 1, 1, -1, 1],
    ]


@given(seed=SEEDS, dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_a_memory_rounded_with_its_model_still_answers(seed: int, dtype: torch.dtype) -> None:
    """A model's ``.half()`` rounds the buffers too; a covariance of rank 3 is then no longer positive."""
    clouds, codes = clusters(3, 2, 12, seed, spread=1.0), random_codes(3)
    memory = filled(clouds, codes).to(dtype)
    found, confidence = memory.infer(clouds.mean(1))
    torch.testing.assert_close(found, codes.double(), rtol=0, atol=1e-7)
    assert confidence.isfinite().all()
