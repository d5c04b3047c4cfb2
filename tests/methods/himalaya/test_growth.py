"""Where a learnt task goes: a free slot, one that it shares, or one that is taken from a task that misses it least."""

import tempfile

import pytest
import torch
from families import Case, llama
from hypothesis import given
from hypothesis import strategies as st
from learning import adapter_of, alone, attached, learn, put, random_atoms
from peft import PeftModel
from torch.nn.functional import normalize

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.himalaya import HimalayaAdapter
from himalaya_adapter.methods.himalaya.growth import nearest

SEEDS = st.integers(0, 2**31)
# The source's dictionary: 24 atoms of the core, 16 elastic ones, of which a task takes 3.
SOURCE = {"core_atoms": 24, "elastic_atoms": 16, "atoms_per_task": 3, "evict": True, "similarity_threshold_tau": 0.95}


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def atoms_of(adapter: HimalayaAdapter, name: str) -> torch.Tensor:
    return adapter.task_atoms(adapter.tasks.row_of(name))


def slots_of(adapter: HimalayaAdapter, name: str) -> list[int]:
    numbers = adapter.tasks.numbers[adapter.tasks.row_of(name)]
    return sorted(number - adapter.growth.first_slot for number in numbers.flatten().tolist() if number >= 0)


def test_a_task_takes_free_slots_and_an_atom_that_never_moved_takes_none() -> None:
    adapter, atoms = alone(elastic_atoms=8), random_atoms(0)
    atoms[1] = 0
    assert put(adapter, "a", atoms) == []
    assert slots_of(adapter, "a") == [0, 1]
    assert put(adapter, "b", random_atoms(1)) == []
    assert slots_of(adapter, "b") == [2, 3, 4]
    stored = atoms_of(adapter, "a")
    assert not stored[1].any()
    assert (torch.cosine_similarity(stored[[0, 2]], atoms[[0, 2]]) > 0.97).all()
    assert len(adapter.growth.free_slots()) == 3


def test_a_task_that_is_learnt_again_leaves_its_slots_to_itself() -> None:
    adapter = alone(elastic_atoms=6)
    put(adapter, "a", random_atoms(0))
    put(adapter, "b", random_atoms(1))
    before = atoms_of(adapter, "b")
    put(adapter, "a", random_atoms(2))
    assert slots_of(adapter, "a") == [0, 1, 2]
    assert torch.equal(atoms_of(adapter, "b"), before)


@pytest.mark.parametrize("index", ["learnable_kd_tree", "scan"])
@pytest.mark.parametrize("factor", [0.5, -0.7])
def test_an_atom_that_is_there_already_is_shared(index: str, factor: float) -> None:
    adapter = alone(index=index, similarity_threshold_tau=0.95)
    put(adapter, "a", random_atoms(0))
    there, atoms = atoms_of(adapter, "a"), random_atoms(1)
    atoms[1] = factor * there[2]
    (event,) = put(adapter, "b", atoms)
    assert event.kind == "sharing"
    assert event.slot == 2
    assert event.similarity == pytest.approx(1 if factor > 0 else -1, abs=1e-5)
    torch.testing.assert_close(atoms_of(adapter, "b")[1], atoms[1], rtol=0, atol=0.01)
    assert slots_of(adapter, "b") == [2, 3, 4]
    assert torch.equal(atoms_of(adapter, "a"), there)
    # Neither of the two can move it now.
    put(adapter, "a", random_atoms(3))
    torch.testing.assert_close(atoms_of(adapter, "b")[1], atoms[1], rtol=0, atol=0.01)
    assert 2 not in slots_of(adapter, "a")


def test_an_atom_that_only_resembles_another_is_not_shared() -> None:
    adapter = alone(similarity_threshold_tau=0.95)
    put(adapter, "a", random_atoms(0))
    there, other = normalize(atoms_of(adapter, "a")[0], dim=0), normalize(random_atoms(1)[0], dim=0)
    for cosine, shared in ((0.94, False), (0.96, True)):
        aside = normalize(other - (other @ there) * there, dim=0)
        atoms = random_atoms(2 + shared)
        atoms[0] = cosine * there + (1 - cosine**2) ** 0.5 * aside
        assert kinds(put(adapter, f"b {cosine}", atoms)) == ["sharing"] * shared


def test_an_atom_too_short_to_be_a_share_of_another_keeps_a_slot_of_its_own() -> None:
    """A share is counted in 64ths: of a short atom nothing would be left."""
    adapter = alone(similarity_threshold_tau=0.95)
    put(adapter, "a", random_atoms(0))
    atoms = random_atoms(1)
    atoms[0] = 0.004 * atoms_of(adapter, "a")[0]
    assert put(adapter, "b", atoms) == []
    assert torch.cosine_similarity(atoms_of(adapter, "b")[0], atoms[0], dim=0) > 0.97


@given(seed=SEEDS, count=st.integers(1, 60), width=st.integers(2, 20), fanout=st.sampled_from([4, 8, 16]))
def test_the_tree_finds_what_a_scan_finds(seed: int, count: int, width: int, fanout: int) -> None:
    atoms, vectors = random_atoms(seed, count, width), random_atoms(seed + 1, 3, width)
    cosines = (normalize(atoms, dim=1) @ vectors.T).abs()
    for index in ("scan", "learnable_kd_tree"):
        found = nearest(vectors, atoms, HimalayaConfig(index=index, fanout=fanout))
        torch.testing.assert_close(cosines.gather(0, found[None])[0], cosines.amax(0), rtol=0, atol=1e-5)


def test_without_eviction_a_task_that_does_not_fit_is_refused_before_anything_changes() -> None:
    adapter = alone(elastic_atoms=8)
    put(adapter, "a", random_atoms(0))
    put(adapter, "b", random_atoms(1))
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    with pytest.raises(HimalayaError, match="no room for another task: 2 of 8 slots are free, a task needs 3") as no:
        adapter.start_task("c")
    assert "\n" not in str(no.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state_dict().items())
    put(adapter, "b", random_atoms(2))  # its own slots are enough for itself
    assert adapter.tasks.known() == ["a", "b"]


def test_the_slot_that_is_missed_least_is_evicted() -> None:
    adapter = alone(elastic_atoms=6, evict=True, similarity_threshold_tau=0.9)
    put(adapter, "a", random_atoms(0))
    put(adapter, "b", random_atoms(1))
    adapter.fisher.importance.copy_(torch.tensor([0.5, 0.1, 0.4, 0.3, 0.15, 0.55]))
    adapter.start_task("c")
    adapter.atoms.data.zero_()
    adapter.atoms.data[0] = 0.1
    adapter.atoms.data[1] = -0.1 * torch.arange(64).remainder(2)
    events = adapter.end_task()
    assert kinds(events) == ["eviction", "eviction"]
    assert [event.slot for event in events] == [1, 4]
    assert [event.tasks for event in events] == [("a",), ("b",)]
    assert all(0 <= event.survives < 1 for event in events)


def test_a_slot_that_the_new_task_shares_is_not_evicted_for_it() -> None:
    adapter = alone(elastic_atoms=6, evict=True, similarity_threshold_tau=0.95)
    put(adapter, "a", random_atoms(0))
    put(adapter, "b", random_atoms(1))
    adapter.fisher.importance.copy_(torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5, 0.5]))
    shared, atoms = atoms_of(adapter, "a")[0], random_atoms(2)
    atoms[0] = shared
    events = put(adapter, "c", atoms)
    assert kinds(events) == ["sharing", "eviction", "eviction"]
    torch.testing.assert_close(atoms_of(adapter, "c")[0], shared)
    torch.testing.assert_close(atoms_of(adapter, "a")[0], shared)


@given(seed=SEEDS, core=st.integers(1, 6), residuals=st.integers(0, 20), norm=st.sampled_from([0.05, 0.5, 1.0]))
def test_a_stand_in_is_never_worse_than_nothing(seed: int, core: int, residuals: int, norm: float) -> None:
    """Also after its coefficients were rounded and cut off, in the metric in which it was found."""
    adapter = alone(16, core_atoms=core, elastic_atoms=4, evict=True, similarity_threshold_tau=1.0)
    for gradient in random_atoms(seed, residuals, 16):
        adapter.fisher.observe(gradient[None].expand(3, -1) * torch.tensor([[1.0], [0.5], [0.1]]))
    rows = adapter.fisher.unit_residuals()
    metric = rows.T @ rows / max(1, len(rows)) + torch.eye(16) / 16
    put(adapter, "a", random_atoms(seed, 3, 16, norm))
    held = adapter.task_atoms(0)
    atoms = random_atoms(seed + 1, 3, 16, 0.2)
    atoms[2] = 0
    assert kinds(put(adapter, "b", atoms)) == ["eviction"]
    numbers, coefficients = adapter.tasks.numbers[0], adapter.tasks.coefficients[0]
    for atom in range(3):
        stand_in = (coefficients[atom].float() / 64) @ adapter.dictionary.atoms(numbers[atom].long().clamp_min(0))
        error = held[atom] - stand_in
        assert error @ metric @ error <= (held[atom] @ metric @ held[atom]) * (1 + 1e-5)


@pytest.mark.parametrize("index", ["learnable_kd_tree", "scan"])
def test_the_source_s_dictionary_over_twelve_tasks(index: str) -> None:
    """24 + 16 atoms, 3 a task: free slots first, then evictions that survive in part; the sizes stay as they are."""
    adapter, events, sizes = alone(index=index, **SOURCE), [], []
    for number in range(12):
        atoms = random_atoms(number)
        if number in (3, 8):  # what another task has learnt as well
            atoms[0] = -0.8 * atoms_of(adapter, f"task {number - 1}")[1]
        adapter.fisher.observe(random_atoms(100 + number) * torch.rand(3, 1))
        mine = put(adapter, f"task {number}", atoms)
        events += mine
        sizes.append({name: tensor.shape for name, tensor in adapter.state_dict().items()})
        assert (torch.cosine_similarity(atoms_of(adapter, f"task {number}"), atoms) > 0.95).all()
        if number < 5:
            assert "eviction" not in kinds(mine)
    assert kinds(events).count("sharing") == 2
    assert kinds(events).count("eviction") == 36 - 2 - 16
    assert all(event.survives > 0.02 for event in events if event.kind == "eviction")
    assert all(size == sizes[0] for size in sizes)
    assert adapter.growth.free_slots() == []
    assert len(adapter.tasks.known()) == 12
    assert all(atoms_of(adapter, name).any() for name in adapter.tasks.known())
    certificate = adapter.norm_certificate()
    assert certificate["atom_norm_max"] <= 1.05
    assert certificate["update_norm_max"] <= 2 * (1 + 1e-5)


def test_evictions_can_be_allowed_later() -> None:
    """What was learnt before counts as if all atoms of a task mattered alike."""
    adapter = attached(elastic_atoms=6)
    learn(adapter, "a")
    learn(adapter, "b")
    with tempfile.TemporaryDirectory() as folder:
        adapter.save_pretrained(folder)
        config = HimalayaConfig.from_pretrained(folder)
        config.evict = True
        model = PeftModel.from_pretrained(Case(llama).base(), folder, config=config, is_trainable=True)
    evicting = adapter_of(model)
    assert torch.equal(evicting.fisher.importance, torch.full((6,), 1 / 3))
    assert kinds(learn(model, "c", steps=9, lr=0.01)) == ["eviction"] * 3
    assert model.tasks == ["a", "b", "c"]
