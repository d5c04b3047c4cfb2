"""The KD-tree: a search that equals a scan, a soft membership that sums to one, shapes that never change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from himalaya_adapter.methods.kd_tree import FAR, LOWEST_LOG_MEMBERSHIP, PAIRS_AT_ONCE, KDTree

SEEDS = st.integers(0, 2**32 - 1)
TREES = {
    "atoms": st.integers(1, 300),
    "dimensions": st.integers(1, 8),
    "fanout": st.sampled_from([4, 8, 16]),
    "leaf_size": st.integers(1, 8),
}
LAYOUTS = st.sampled_from(["gaussian", "clusters", "grid", "all equal", "collinear", "tiny", "huge"])
DTYPES = st.sampled_from([torch.float32, torch.float64])


def random_keys(
    generator: torch.Generator, layout: str, atoms: int, dimensions: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    keys = torch.randn(atoms, dimensions, generator=generator, dtype=torch.float64)
    if layout == "clusters":
        keys = keys[torch.randint(0, atoms, (atoms,), generator=generator)[: atoms // 4 + 1].repeat(5)[:atoms]]
        keys = keys + 1e-3 * torch.randn(keys.shape, generator=generator, dtype=torch.float64)
    elif layout == "grid":
        keys = keys.round()  # many duplicates and many equal distances
    elif layout == "all equal":
        keys = keys[:1].expand_as(keys).clone()
    elif layout == "collinear":
        keys = keys[:, :1] * keys[:1]
    elif layout == "tiny":
        keys = keys * 1e-30
    elif layout == "huge":
        keys = keys * 1e8
    return keys.to(dtype)


def random_queries(generator: torch.Generator, keys: torch.Tensor) -> torch.Tensor:
    """Queries all over the place: near the keys, on keys, half way between two keys, far away."""
    noise = torch.randn(12, keys.shape[1], generator=generator, dtype=keys.dtype) * keys.abs().max()
    some = keys[torch.randint(0, len(keys), (12,), generator=generator)]
    others = keys[torch.randint(0, len(keys), (12,), generator=generator)]
    return torch.cat([noise, some, (some + others) / 2, 100 * noise])


def scan(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    mode = "donot_use_mm_for_euclid_dist"  # one rounding per pair, whatever the number of keys
    return torch.cdist(queries.double(), keys.double(), compute_mode=mode).argmin(1)


def leaves_of(tree: KDTree) -> torch.Tensor:
    """The leaf of every atom, from its path."""
    leaf = torch.zeros(len(tree.path), dtype=torch.long)
    for child in tree.path.unbind(1):
        leaf = leaf * tree.fanout + child
    return leaf


@given(seed=SEEDS, layout=LAYOUTS, dtype=DTYPES, **TREES)
def test_the_nearest_key_is_the_one_that_a_scan_finds(
    seed, layout, dtype, atoms, dimensions, fanout, leaf_size
) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = random_keys(generator, layout, atoms, dimensions, dtype)
    tree = KDTree(atoms, dimensions, fanout, leaf_size)
    queries = random_queries(generator, keys)
    assert torch.equal(tree.nearest(queries, keys), scan(queries, keys))  # even before it is built
    tree.build(keys)
    assert torch.equal(tree.nearest(queries, keys), scan(queries, keys))


@given(seed=SEEDS, before=LAYOUTS, after=LAYOUTS, **TREES)
def test_trained_thresholds_and_moved_keys_change_no_answer(
    seed, before, after, atoms, dimensions, fanout, leaf_size
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tree = KDTree(atoms, dimensions, fanout, leaf_size)
    tree.build(random_keys(generator, before, atoms, dimensions))
    with torch.no_grad():
        tree.thresholds.add_(torch.randn(tree.thresholds.shape, generator=generator) * 10)
    keys = random_keys(generator, after, atoms, dimensions)
    queries = random_queries(generator, keys)
    assert torch.equal(tree.nearest(queries, keys), scan(queries, keys))


def test_more_queries_than_are_searched_at_once_come_back_in_order() -> None:
    atoms = 1500
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(atoms, 3, generator=generator)
    queries = torch.randn(PAIRS_AT_ONCE // atoms + 100, 3, generator=generator)
    tree = KDTree(atoms, 3, 4, 4)
    tree.build(keys)
    assert torch.equal(tree.nearest(queries, keys), scan(queries, keys))
    assert tree.nearest(queries[:0], keys).shape == (0,)


@given(seed=SEEDS, layout=LAYOUTS, **TREES)
def test_the_leaves_are_small_and_hold_equal_shares(seed, layout, atoms, dimensions, fanout, leaf_size) -> None:
    tree = KDTree(atoms, dimensions, fanout, leaf_size)
    before = leaves_of(tree).bincount(minlength=tree.leaves)
    tree.build(random_keys(torch.Generator().manual_seed(seed), layout, atoms, dimensions))
    for count in (before, leaves_of(tree).bincount(minlength=tree.leaves)):
        assert count.sum() == atoms
        assert count.max() <= leaf_size
    shares = tree.path[:, :1].flatten().bincount()
    if atoms > leaf_size:
        assert len(shares) == min(fanout, -(-atoms // leaf_size))
        assert shares.max() - shares.min() <= 1


def test_a_node_splits_the_axis_of_largest_variance_at_the_midpoints() -> None:
    """Eight keys on a line along the second of two axes, in shuffled order."""
    positions = torch.tensor([70.0, 0, 10, 30, 20, 60, 40, 50])
    tree = KDTree(atoms=8, dimensions=2, fanout=4, leaf_size=2)
    tree.build(torch.stack([torch.arange(8) / 100, positions], dim=1))
    assert tree.axes.tolist() == [1]
    assert tree.thresholds.tolist() == [[15.0, 35.0, 55.0]]
    assert tree.path[:, 0].tolist() == [3, 0, 0, 1, 1, 3, 2, 2]
    assert tree.spread.item() == pytest.approx(positions.std(correction=0).item())


def test_missing_children_lie_beyond_every_query() -> None:
    tree = KDTree(atoms=3, dimensions=1, fanout=4, leaf_size=1)
    tree.build(torch.tensor([[0.0], [1], [2]]))
    assert tree.thresholds.tolist() == [[0.5, 1.5, FAR]]


@given(seed=SEEDS, layout=st.sampled_from(["gaussian", "clusters"]), trained=st.booleans(), **TREES)
def test_the_memberships_of_the_leaves_sum_to_one(seed, layout, trained, atoms, dimensions, fanout, leaf_size) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = random_keys(generator, layout, atoms, dimensions)
    tree = KDTree(atoms, dimensions, fanout, leaf_size).double()
    tree.build(keys)
    if trained:  # far enough for thresholds to change places
        with torch.no_grad():
            tree.thresholds.add_(torch.randn(tree.thresholds.shape, generator=generator))
    queries = random_queries(generator, keys)
    leaf = leaves_of(tree)
    one_of_each = torch.tensor([leaf.tolist().index(number) for number in leaf.unique()])
    memberships = tree.as_leaves().log_membership(queries).exp()
    total = memberships[:, one_of_each].sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-4)
    torch.testing.assert_close(memberships, memberships[:, one_of_each][:, torch.unique(leaf, return_inverse=True)[1]])


def test_the_membership_is_the_ordered_logistic_of_the_definition() -> None:
    """Two levels, against differences of logistic functions written out atom by atom."""
    generator = torch.Generator().manual_seed(3)
    keys, queries = torch.randn(2, 16, 3, generator=generator, dtype=torch.float64)
    tree = KDTree(atoms=16, dimensions=3, fanout=4, leaf_size=1).double()
    tree.build(keys)
    expected = torch.ones(16, 16, dtype=torch.float64)
    for atom in range(16):
        node = 0
        for child in tree.path[atom].tolist():
            borders = [-torch.inf, *tree.thresholds[node].tolist(), torch.inf]
            position, spread = queries[:, tree.axes[node]], tree.spread[node]
            lower, upper = ((position - borders[child + side]) / spread for side in (0, 1))
            expected[:, atom] *= torch.sigmoid(lower) - torch.sigmoid(upper)
            node = node * 4 + 1 + child
    torch.testing.assert_close(tree.as_leaves().log_membership(queries), expected.log())


@pytest.mark.parametrize(("fanout", "leaf_size"), [(4, 1), (8, 2), (4, 4)])
def test_the_gradient_of_the_membership_in_thresholds_and_queries(fanout: int, leaf_size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    tree = KDTree(16, 3, fanout, leaf_size).double()
    tree.build(torch.randn(16, 3, generator=generator, dtype=torch.float64))
    thresholds = tree.thresholds.detach().flip(1).contiguous().requires_grad_()  # crossed: the wrong way round
    queries = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    tree.forward = lambda queries: tree.as_leaves().log_membership(queries)

    def membership(thresholds: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(tree, {"thresholds": thresholds}, (queries,))

    assert torch.autograd.gradcheck(membership, (thresholds, queries))


@given(seed=SEEDS, layout=LAYOUTS, **TREES)
def test_memberships_and_their_gradients_are_finite_everywhere(
    seed, layout, atoms, dimensions, fanout, leaf_size
) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = random_keys(generator, layout, atoms, dimensions, torch.float32)
    tree = KDTree(atoms, dimensions, fanout, leaf_size)
    tree.build(keys)
    queries = random_queries(generator, keys).requires_grad_()
    logs = tree.as_leaves().log_membership(queries)
    assert logs.shape == (len(queries), atoms)
    assert logs.isfinite().all()
    assert (logs <= 1e-6).all()
    assert (logs >= tree.path.shape[1] * LOWEST_LOG_MEMBERSHIP).all()
    if tree.path.shape[1]:
        logs.sum().backward()
        assert queries.grad.isfinite().all()
        assert tree.thresholds.grad.isfinite().all()


def test_training_the_thresholds_draws_a_leaf_over_its_queries() -> None:
    keys = torch.tensor([[0.0], [1], [2], [3]])
    tree = KDTree(atoms=4, dimensions=1, fanout=4, leaf_size=1)
    tree.build(keys)
    query = torch.tensor([[2.4]])
    before = tree.as_leaves().log_membership(query)[0, 1].item()
    optimizer = torch.optim.Adam(tree.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        (-tree.as_leaves().log_membership(query)[0, 1]).backward()
        optimizer.step()
    assert tree.as_leaves().log_membership(query)[0, 1].item() > before + 0.5
    assert tree.nearest(query, keys).tolist() == [2]  # and yet the nearest key is the nearest key


@given(seed=SEEDS, **TREES)
def test_a_loaded_tree_answers_like_the_saved_one(seed, atoms, dimensions, fanout, leaf_size) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = random_keys(generator, "gaussian", atoms, dimensions)
    saved, loaded = (KDTree(atoms, dimensions, fanout, leaf_size) for _ in range(2))
    shapes = {name: tensor.shape for name, tensor in loaded.state_dict().items()}
    saved.build(keys)
    assert {name: tensor.shape for name, tensor in saved.state_dict().items()} == shapes
    loaded.load_state_dict(saved.state_dict())
    queries = random_queries(generator, keys)
    assert torch.equal(loaded.as_leaves().log_membership(queries), saved.as_leaves().log_membership(queries))
    assert torch.equal(loaded.nearest(queries, keys), saved.nearest(queries, keys))
    assert torch.equal(loaded.bounds(keys).low, saved.bounds(keys).low)


def test_sixteen_atoms_in_leaves_of_four_take_one_node() -> None:
    for fanout in (4, 8, 16):
        state = KDTree(16, 6, fanout, 4).state_dict()
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
            "thresholds": (1, fanout - 1),
            "axes": (1,),
            "spread": (1,),
            "path": (16, 1),
        }
