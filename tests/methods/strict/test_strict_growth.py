"""Growth: the residual of a step, the ring buffer and its window, and what a promotion may overwrite."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, linear, normalize

from himalaya_adapter.methods.fisher import RESIDUALS
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig, StrictAdapter
from himalaya_adapter.methods.himalaya_strict.growth import Growth, principal_direction
from himalaya_adapter.methods.kd_tree import KDTree

SEEDS = st.integers(0, 2**32 - 1)
CORE, WIDTH = 24, 48


def random_rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The residual of a step ----------------------------------------------------------------------------------------


def dense_layer(shared: StrictAdapter, inputs: torch.Tensor, output_width: int, leaf: torch.Tensor) -> torch.Tensor:
    """The update with every token's dense vector ``r`` moved by its row of ``leaf`` ``(tokens, d)``, zero or not."""
    width = inputs.shape[-1]
    atoms = shared.dictionary.atoms()
    normalised = inputs / inputs.square().mean(-1, keepdim=True).sqrt()
    u, gain = shared.update.route(
        normalised @ shared.router.projection[:, :width].T, shared.update.routes(shared.code, shared.in_use)
    )
    r_in = normalize(u @ atoms[:, :width], dim=-1) + leaf[:, :width]
    r_out = normalize(u @ atoms[:, :output_width], dim=-1) + leaf[:, :output_width]
    if shared.config.norm_target == "residual":
        gain = gain / shared.dictionary.width**0.5
    acted_on = inputs if shared.config.placement == "weights" else normalised
    matrices = gain[..., None] * r_out[:, :, None] * r_in[:, None, :]
    return torch.einsum("tmn,tn->tm", matrices, acted_on)


@pytest.mark.parametrize("norm_target", ["update", "residual"])
@pytest.mark.parametrize(
    ("placement", "widths"),
    [("residual_stream", (48, 48)), ("weights", (48, 48)), ("weights", (48, 20)), ("weights", (20, 48))],
)
def test_the_residual_is_the_negative_gradient_by_r_over_tokens_and_layers(placement, widths, norm_target) -> None:
    """Two layers of different shapes in sequence: the second one's routing depends on the first one's update."""
    config = HimalayaStrictConfig(
        init_weights=False, hidden_params=20_000, placement=placement, norm_target=norm_target
    )
    shared = StrictAdapter(config, WIDTH).double().train()
    shared.in_use.fill_(True)
    inputs, target = random_rows(0, 11, widths[0]), random_rows(1, 11, widths[0])
    weights = [random_rows(2, widths[1], widths[0]) / 7, random_rows(3, widths[0], widths[1]) / 7]

    def loss(updates: list) -> torch.Tensor:
        torch.manual_seed(0)  # the gates are sampled, layer by layer
        hidden = linear(inputs, weights[0]) + updates[0](inputs, widths[1])
        return (linear(hidden, weights[1]) + updates[1](hidden, widths[0]) - target).square().sum()

    leaves = [torch.zeros(11, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    dense = loss([lambda x, width, leaf=leaf: dense_layer(shared, x, width, leaf) for leaf in leaves])
    gradient = sum(one.sum(0) for one in torch.autograd.grad(dense, leaves))
    measured = loss([shared, shared])
    torch.testing.assert_close(measured, dense)
    measured.backward()
    found = shared.update.probe.grad.double()
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max())

    assert shared.before_step()
    assert cosine_similarity(shared.growth.unit_residuals()[0].double(), -gradient, dim=0) > 0.999
    best = cosine_similarity(shared.dictionary.elastic.detach(), gradient[None]).abs().max().item()
    assert 0 < shared.growth.similarities[0] <= best * (1 + 1e-6)
    assert shared.update.probe.grad is None  # the next step starts anew


# The ring buffer and its window --------------------------------------------------------------------------------


@given(seed=SEEDS, width=st.sampled_from([16, 576, 4096]), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_a_residual_survives_its_rounding_to_8_bits(seed: int, width: int, scale: float) -> None:
    growth, residual = Growth(width, 4, 0.5), random_rows(seed, width) * scale
    growth.observe(residual, torch.tensor(0.5))
    stored = growth.unit_residuals()
    assert stored.shape == (1, width)
    assert stored.norm().item() == pytest.approx(1, abs=1e-5)
    assert cosine_similarity(stored[0].double(), residual, dim=0) > 0.999


def test_the_ring_keeps_the_last_128_residuals() -> None:
    growth, rows = Growth(32, 4, 0.5), random_rows(0, 300, 32)
    for index, row in enumerate(rows):
        growth.observe(row, torch.tensor(0.5))
        if index == 70:  # a new window forgets no residual
            growth.restart()
        kept = min(index + 1, RESIDUALS)
        assert len(growth.unit_residuals()) == kept
        if index in (0, 100, 127, 128, 255, 299):
            cosines = growth.unit_residuals().double() @ normalize(rows[index + 1 - kept : index + 1], dim=1).T
            assert (cosines.amax(0) > 0.999).all()
    assert growth.residuals.shape == (RESIDUALS, 32)


@given(seed=SEEDS, window=st.integers(1, 9), threshold=st.floats(0.2, 0.8), count=st.integers(0, 40))
def test_growth_is_due_when_the_trailing_mean_is_below_the_threshold(seed, window, threshold, count) -> None:
    growth, since_start = Growth(4, window, threshold), []
    generator = torch.Generator().manual_seed(seed)
    for similarity in torch.rand(count, generator=generator):
        growth.observe(torch.ones(4), similarity)
        since_start.append(similarity.item())
        mean = sum(since_start[-window:]) / window if len(since_start) >= window else None
        assert growth.mean_similarity == (None if mean is None else pytest.approx(mean, abs=1e-6))
        if mean is None or abs(mean - threshold) > 1e-6:
            assert growth.due == (mean is not None and mean < threshold)
        if growth.due and similarity < 0.5:
            growth.restart()
            since_start.clear()
            assert not growth.due
    assert growth.seen == count  # the residuals stay


@given(seed=SEEDS, rows=st.integers(1, 40), width=st.integers(2, 60), mean=st.sampled_from([0.0, 1.0]))
def test_the_principal_direction_is_the_top_singular_vector_along_the_mean(seed, rows, width, mean) -> None:
    matrix = random_rows(seed, rows, width) * torch.logspace(0, -1, width, dtype=torch.float64) + mean
    direction = principal_direction(matrix)
    _, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    assert direction.norm().item() == pytest.approx(1, abs=1e-9)
    assert direction @ matrix.mean(0) >= 0
    assert (matrix @ direction).norm().item() == pytest.approx(singular[0].item(), rel=1e-9)
    if len(singular) == 1 or singular[1] < 0.99 * singular[0]:
        assert abs(direction @ right[0]) == pytest.approx(1, abs=1e-6)


# What a promotion overwrites -----------------------------------------------------------------------------------


def inside_a_task(own: list[int], others: list[int], atoms_per_task: int, **changes: Any) -> StrictAdapter:
    """An adapter inside a task, with residuals to promote; its own slots and those of others are given."""
    config = HimalayaStrictConfig(atoms_per_task=atoms_per_task, elastic_atoms=8, hidden_params=20_000, **changes)
    shared = StrictAdapter(config, WIDTH)
    shared.end_task()
    shared.start_task("second")
    shared.own.zero_()[CORE + torch.tensor(own)] = True
    shared.in_use[CORE:] = False
    shared.in_use[CORE + torch.tensor(own + others)] = True
    shared.statistics.tokens_seen += 10
    shared.statistics.atom_usage += 10 * shared.own + torch.arange(len(shared.own)) / 10
    shared.statistics.fisher += torch.arange(len(shared.importance), 0, -1.0)
    for row in random_rows(0, 40, WIDTH).float() + 0.5:
        shared.growth.observe(normalize(row, dim=0), torch.tensor(0.1))
    return shared


@pytest.mark.parametrize("index", ["learnable_kd_tree", "scan"])
@torch.no_grad()
def test_a_promotion_takes_a_free_slot_then_the_least_useful_own_one_never_another_tasks(index: str) -> None:
    others = [0, 1]
    shared = inside_a_task(own=[2, 3], others=others, atoms_per_task=4, index=index)
    for turn in range(7):
        own = shared.own[-len(shared.dictionary.elastic) :].nonzero().flatten().tolist()
        atoms, direction = shared.dictionary.elastic.clone(), principal_direction(shared.growth.unit_residuals())
        value = shared.statistics.usage[CORE:] * shared.statistics.fisher
        event = shared.grow()
        assert event is not None
        slot = event.slot
        assert slot not in others
        if turn < 2:
            assert slot not in own
            assert event.evicted is None
        else:
            assert slot == event.evicted == min(own, key=lambda one: value[one].item())
            assert 0 <= event.survives <= 1
        assert torch.equal(shared.dictionary.elastic[slot], direction)
        kept = [one for one in range(8) if one != slot]
        assert torch.equal(shared.dictionary.elastic[kept], atoms[kept])
        assert shared.own[-len(shared.dictionary.elastic) :].sum() == min(4, 3 + turn)
        assert shared.in_use[CORE:].sum() == min(6, 5 + turn)
        assert not shared.growth.due  # the window starts anew
        head = shared.router.task_head(shared.code)
        assert head[CORE + slot, -1] == pytest.approx(8, abs=1e-3)  # the task uses it for every token
        assert head[CORE + slot, :-1].abs().max() < 1e-3
        shared.statistics.fisher[slot] = 0.5 * turn  # as the next steps would


def test_nothing_is_promoted_over_another_tasks_atom() -> None:
    shared = inside_a_task(own=[0], others=list(range(1, 8)), atoms_per_task=1)
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    assert shared.grow() is None
    changed = {name for name, tensor in shared.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"growth.observed"}  # the window starts anew


@torch.no_grad()
def test_a_promotion_rebuilds_the_tree() -> None:
    shared = inside_a_task(own=[2, 3], others=[0, 1], atoms_per_task=4, fanout=4, leaf_size=1)
    shared.dictionary.elastic.copy_(shared.dictionary.elastic.flip(0))  # as if the atoms had moved since
    shared.grow()
    fresh = KDTree(8, len(shared.router.projection), 4, 1)
    fresh.build(shared.router.keys(shared.dictionary.elastic))
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(shared.tree.state_dict()[name], tensor), name
