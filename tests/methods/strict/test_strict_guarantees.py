"""What is promised for any number of layers and tasks: constant memory, bounded norms; and what each switch does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import OBLONG, SQUARE, Case, llama, random_tokens
from peft import PeftModel, get_peft_model

from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig, StrictAdapter
from himalaya_adapter.methods.himalaya_strict.release import pack

# Few atoms and narrow codes: all slots and head directions are taken after a few tasks, and a task costs little.
SMALL = {"core_atoms": 4, "elastic_atoms": 5, "atoms_per_task": 2, "code_width": 8, "hidden_params": 1_000}


HANDED_OVER = {"router.head", "consolidation.code_use"}


def shared_of(model: PeftModel) -> StrictAdapter:
    return model.base_model.himalaya_strict_shared["default"]


def learn(model: PeftModel, tasks: range, steps: int = 1, lr: float = 0.01) -> list[Event]:
    """Learn tasks of random tokens; returns the evictions and promotions."""
    events: list[Event] = []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    handles = model.protect(optimizer, events.append)
    for task in tasks:
        events += model.start_task(f"task {task}")
        for step in range(steps):
            torch.manual_seed(100 * task + step)  # the gates are sampled
            tokens = random_tokens(100 * task + step, 1, 6)
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.end_task()
    for handle in handles:
        handle.remove()
    return events


# Constant memory -----------------------------------------------------------------------------------------------


def stored(model: PeftModel, folder: Path) -> tuple[dict[str, int], int]:
    """Stored bytes by tensor, and the size of the adapter's file."""
    model.save_pretrained(folder)
    return model.stored_bytes(), (folder / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize("changes", [{}, SQUARE], ids=["stream", "weights"])
def test_the_layers_do_not_change_the_stored_bytes(changes: dict, tmp_path: Path) -> None:
    sizes = []
    for layers in (2, 8):
        base = Case(lambda layers=layers: llama(layers), method=HimalayaStrictConfig).base()
        model = get_peft_model(base, HimalayaStrictConfig(task_type="CAUSAL_LM", **changes)).train()
        learn(model, range(2))
        sizes.append(stored(model, tmp_path / str(layers)))
    assert sizes[0] == sizes[1]
    total = sum(sizes[0][0].values())
    assert total <= sizes[0][1] < total + 8192  # the rest is the header


def test_the_tasks_do_not_change_the_stored_bytes(tmp_path: Path) -> None:
    """After 1, 10 and 60 tasks, with evictions and promotions on the way; the state stays finite and usable."""
    base = Case(lambda: llama(1), method=HimalayaStrictConfig).base()
    config = HimalayaStrictConfig(task_type="CAUSAL_LM", growth_window=1, similarity_threshold_tau=1.0, **SMALL)
    model, sizes, events, learnt = get_peft_model(base, config).train(), [], [], 0
    for tasks in (1, 10, 60):
        events += learn(model, range(learnt, tasks))
        learnt = tasks
        sizes.append(stored(model, tmp_path / str(tasks)))
    assert sizes[0] == sizes[1] == sizes[2]
    shared = shared_of(model)
    assert shared.tasks_learnt == 60
    assert sum(event.kind == "eviction" for event in events) > 40
    assert all(tensor.isfinite().all() for tensor in shared.state_dict().values())
    certificate = model.norm_certificate()
    assert certificate["update_norm_max"] <= 1 + 1e-6
    assert certificate["atom_norm_max"] <= 1.05
    model.eval().set_task("task 59")
    assert model(input_ids=random_tokens()).logits.isfinite().all()


# Bounded norms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(lambda: llama(1), {}, HimalayaStrictConfig), id="stream"),
        pytest.param(Case(lambda: llama(1), OBLONG, HimalayaStrictConfig), id="weights", marks=pytest.mark.slow),
    ],
)
def test_the_certificate_holds_over_many_tasks_with_promotions_and_evictions(case: Case) -> None:
    """Large steps, no clipping: the bounds are a matter of construction, not of careful training."""
    torch.manual_seed(0)
    sizes = SMALL | {"elastic_atoms": 12, "atoms_per_task": 3}
    config = case.config(fresh=True, growth_window=2, similarity_threshold_tau=0.95, **sizes)
    model = get_peft_model(case.base(), config).train()
    shared, most, events = shared_of(model), [], []
    for task in range(30):
        # A task grows as long as it owns several atoms or finds free ones: the first few.
        events += learn(model, range(task, task + 1), steps=20 if task < 4 else 2, lr=0.3)
        active = model.task_statistics()
        assert active["expected_active_atoms"] <= 3 * (1 + 1e-6)
        most.append(active["active_atoms"])
        atoms = shared.dictionary.atoms()
        assert atoms.isfinite().all()
        assert atoms.norm(dim=1).max() <= 1.05
    counts = {kind: sum(event.kind == kind for event in events) for kind in ("promotion", "eviction")}
    assert counts["promotion"] > 20, counts
    assert counts["eviction"] > 15, counts
    assert 1 <= max(most) <= 3
    certificate = model.norm_certificate()
    assert 0.5 < certificate["update_norm_max"] <= 1 + 1e-6
    assert 0.9 < certificate["atom_norm_max"] <= 1.05
    # The certificate is a lower bound if it misses something: look at the updates themselves, from outside.
    model.eval()
    inputs = torch.randn(500, shared.dictionary.width, generator=torch.Generator().manual_seed(0))
    length = shared.dictionary.width**0.5 if case.config().placement == "residual_stream" else inputs.norm(dim=-1)
    for task in (0, 15, 29):
        model.set_task(f"task {task}")
        shared.begin_pass(None)
        assert (shared(inputs, shared.dictionary.width).norm(dim=-1) <= length * (1 + 1e-5)).all()


# Switches for ablation -----------------------------------------------------------------------------------------


def learnt(**changes: Any) -> tuple[StrictAdapter, list[Event], torch.Tensor]:
    """An adapter after two tasks, its events, and the logits of the second task."""
    torch.manual_seed(0)
    config = HimalayaStrictConfig(
        task_type="CAUSAL_LM", **{"growth_window": 2, "similarity_threshold_tau": 0.99, **changes}
    )
    model = get_peft_model(Case(llama, method=HimalayaStrictConfig).base(), config).train()
    events = learn(model, range(2), steps=4)
    with torch.no_grad():
        return shared_of(model), events, model.eval()(input_ids=random_tokens()).logits


@pytest.fixture(scope="module")
def default() -> tuple[StrictAdapter, list[Event], torch.Tensor]:
    return learnt()


def test_the_switches_left_alone_give_the_same_run(default) -> None:
    assert torch.equal(learnt()[2], default[2])


def test_without_the_tree_no_threshold_is_stored_or_trained(default) -> None:
    shared, events, logits = learnt(index="scan")
    names, without = set(default[0].state_dict()), set(shared.state_dict())
    assert names - without == {f"tree.{name}" for name in ("thresholds", "axes", "spread", "path")}
    assert without < names
    assert dict(shared.named_parameters()).keys() == {"dictionary.elastic", "router.head"}
    assert len(events) == len(default[1])  # growth goes on
    assert not torch.equal(logits, default[2])


def test_without_growth_nothing_is_promoted(default) -> None:
    shared, events, _ = learnt(grow=False)
    assert {event.kind for event in default[1]} == {"promotion"}
    assert events == []
    assert not shared.growth.residuals.any()
    assert shared.state_dict().keys() == default[0].state_dict().keys()


def test_without_consolidation_an_eviction_leaves_the_head_alone() -> None:
    for consolidate in (True, False):
        shared, _, _ = learnt(consolidate=consolidate)
        before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
        with torch.no_grad():
            event = shared.evict()
        changed = {name for name, tensor in shared.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {"importance", "in_use"} | (HANDED_OVER if consolidate else set())
        assert (event.survives is not None) == consolidate


def test_without_protection_all_atoms_move_and_no_direction_is_taken(default) -> None:
    shared, _, _ = learnt(protect=False)
    assert torch.equal(shared.projector, torch.eye(len(shared.projector)))
    assert not torch.equal(default[0].projector, shared.projector)
    start = StrictAdapter(default[0].config, shared.dictionary.width).dictionary.elastic
    moved = [(one.dictionary.elastic != start).any(1) for one in (shared, default[0])]
    used = shared.in_use[-len(start) :]
    assert (moved[0] & ~shared.own[-len(start) :]).sum() > 0  # what the first task owned, in the second one
    assert not (moved[1] & ~used).any()
    assert shared.tasks_learnt == 2


@pytest.mark.parametrize(
    ("changes", "bound"),
    [({"norm_target": "residual"}, 1 / 8), ({"gain": "fixed"}, 1.0), (SQUARE, 1.0)],
    ids=["residual norm", "fixed gain", "weights"],
)
def test_the_other_readings_of_the_update_have_their_own_bound(changes: dict, bound: float, default) -> None:
    shared, _, logits = learnt(**changes)
    assert shared.dictionary.width == 64
    norm = shared.norm_certificate()["update_norm_max"]
    assert norm <= bound * (1 + 1e-6)
    if changes.get("gain") == "fixed":
        assert norm == pytest.approx(1, abs=1e-6)
    assert shared.state_dict().keys() == default[0].state_dict().keys()
    assert not torch.equal(logits, default[2])


def test_without_quantisation_a_release_holds_the_atoms_in_16_bits(default) -> None:
    state, config = default[0].state_dict(), default[0].config
    sizes = {}
    for bits in (3, 16):
        changed = HimalayaStrictConfig(**{**config.to_dict(), "quantisation_bits": bits})
        sizes[bits] = sum(tensor.numel() * tensor.element_size() for tensor in pack(state, changed).values())
    atoms = 40 * default[0].dictionary.width
    assert sizes[16] - sizes[3] > 0.5 * atoms * (16 - 3) / 8
