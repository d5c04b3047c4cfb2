"""Learning a second task leaves the first as it was, as far as the protection promises."""

import pytest
import torch
from families import STRICT_CASES, Case, examples, random_tokens
from peft import PeftModel, get_peft_model
from torch import nn

from himalaya_adapter.methods.himalaya_strict import StrictAdapter
from himalaya_adapter.methods.himalaya_strict.protection import PROTECTED_ENERGY, shrink_projector

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
LAYERS_ADAPTED = pytest.mark.parametrize(
    "case", [STRICT_CASES["strict-stream"], STRICT_CASES["strict-oblong"]], ids=["stream", "oblong"]
)


def test_outputs_of_a_past_task_do_not_move_when_all_its_energy_is_protected() -> None:
    """A linear head under Adam: 50 projected steps on other data change nothing that the past features see."""
    torch.manual_seed(0)
    width, rank = 64, 12
    head = nn.Linear(width, 9, bias=False)
    past = torch.randn(200, rank) @ torch.randn(rank, width)
    projector = shrink_projector(torch.eye(width), past.T @ past, 1 - 1e-12)
    before = head(past).detach()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    inputs, targets = torch.randn(100, width), torch.randn(100, 9)
    losses = []
    for _ in range(50):
        loss = (head(inputs) - targets).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        old = head.weight.detach().clone()
        optimizer.step()
        with torch.no_grad():
            head.weight.copy_(old + (head.weight - old) @ projector)
    assert losses[-1] < 0.8 * losses[0]  # the new task is learnt meanwhile
    torch.testing.assert_close(head(past).detach(), before, rtol=0, atol=1e-5 * before.abs().max().item())


def steps(model: PeftModel, optimizer: torch.optim.Optimizer, seed: int, count: int = 5) -> list[torch.Tensor]:
    """Train on random tokens; returns the elastic atoms before and after every step."""
    shared = shared_of(model)
    atoms = [shared.dictionary.elastic.detach().clone()]
    for step in range(count):
        tokens = random_tokens(1000 * seed + step, batch=4)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        atoms.append(shared.dictionary.elastic.detach().clone())
    return atoms


def shared_of(model: PeftModel) -> StrictAdapter:
    return model.base_model.himalaya_strict_shared["default"]


def after_task_a(case: Case, **changes) -> tuple[PeftModel, torch.optim.Optimizer, torch.Tensor]:
    """A model that has learnt task A, its protected optimiser, and the moment of A's latents."""
    torch.manual_seed(0)
    model = get_peft_model(case.base(), case.config(**changes)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.protect(optimizer)
    model.start_task("A", examples())
    steps(model, optimizer, seed=1)
    moment = shared_of(model).statistics.latent_moment.clone()
    model.end_task()
    return model, optimizer, moment


@LAYERS_ADAPTED
def test_the_head_changes_off_the_features_of_the_past_task(case: Case) -> None:
    model, optimizer, moment = after_task_a(case)
    shared = shared_of(model)
    code, head = shared.code.clone(), shared.router.head.detach().clone()
    model.start_task("B")
    steps(model, optimizer, seed=2)
    change = shared.router.head.detach() - head
    assert change.norm() > 1e-3
    on_features = change @ code  # the change of task A's own head, (2k + 1, p + 1)
    energy = (on_features @ moment * on_features).sum()  # sum over A's features of the squared change of the outputs
    assert energy <= (1 - PROTECTED_ENERGY) * moment.trace() * change.square().sum() * (1 + 1e-3)
    torch.testing.assert_close(change.flatten(1) @ shared.projector, change.flatten(1), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_late_task_learns_at_the_speed_of_the_first() -> None:
    """Its own head makes the whole step of the optimiser, although most directions of the shared head are taken."""
    model, *_ = after_task_a(STRICT_CASES["strict-stream"])
    shared = shared_of(model)
    for task in range(20):
        model.start_task(f"task {task}")
        model(input_ids=random_tokens(task), labels=random_tokens(task))
        model.end_task()
    model.start_task("B")
    code, projector = shared.code, shared.projector
    assert (shared.code @ projector.view(-1, 32, projector.shape[0])[0, :, :32] @ shared.code) < 0.7  # of its bias
    before = shared.router.head.detach().clone()
    shared.router.head.grad = torch.zeros_like(before)
    assert shared.before_step()
    wanted = torch.randn(shared.router.head.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shared.router.head.add_(wanted)
    shared.after_step()
    change = shared.router.head.detach() - before
    torch.testing.assert_close(change @ code, wanted @ code, rtol=0, atol=1e-4)
    torch.testing.assert_close(change.flatten(1) @ projector, change.flatten(1), rtol=0, atol=1e-4)


@LAYERS_ADAPTED
def test_only_the_own_atoms_move(case: Case) -> None:
    """To the bit, also when all slots hold something; and the own ones do move."""
    model, optimizer, _ = after_task_a(case)
    shared = shared_of(model)
    for task in range(16):
        evictions = model.start_task(f"task {task}")
        before, *_, after = steps(model, optimizer, seed=task + 2, count=2)
        own = shared.own[-len(shared.dictionary.elastic) :]
        assert torch.equal(after[~own], before[~own])
        assert ((after - before).norm(dim=1)[own] > 1e-4).all()
        model.end_task()
        if evictions:
            break
    assert evictions
    assert shared.in_use.all()


@pytest.mark.parametrize("atom_step", [1.0, 2.5])
def test_the_atoms_move_by_a_multiple_of_the_optimisers_step(atom_step: float) -> None:
    case = STRICT_CASES["strict-stream"]
    model = get_peft_model(case.base(), case.config(atom_step=atom_step))
    model.start_task("A")
    shared = shared_of(model)
    atoms = shared.dictionary.elastic.detach().clone()
    shared.dictionary.elastic.grad = torch.zeros_like(atoms)
    assert shared.before_step()
    step = 0.1 * torch.randn(atoms.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shared.dictionary.elastic.add_(step)
    shared.after_step()
    own = shared.own[-len(shared.dictionary.elastic) :]
    moved = nn.functional.normalize(atoms + atom_step * step, dim=1)
    torch.testing.assert_close(shared.dictionary.elastic.detach()[own], moved[own])
    assert torch.equal(shared.dictionary.elastic.detach()[~own], atoms[~own])


def test_atoms_stay_on_the_sphere() -> None:
    model, optimizer, _ = after_task_a(STRICT_CASES["strict-stream"])
    model.start_task("B")
    for atoms in steps(model, optimizer, seed=2):
        torch.testing.assert_close(atoms.norm(dim=1), torch.ones(16), rtol=0, atol=1e-5)


@LAYERS_ADAPTED
def test_protection_keeps_the_past_task_closer_than_no_protection(case: Case) -> None:
    drifts = {}
    for protect in (True, False):
        model, optimizer, _ = after_task_a(case, protect=protect)
        tokens = random_tokens(1000, batch=4)
        before = model.eval()(input_ids=tokens).logits.detach()
        model.train().start_task("B")
        steps(model, optimizer, seed=2, count=10)
        model.eval().set_task("A")
        drifts[protect] = (model(input_ids=tokens).logits.detach() - before).square().mean().item()
    assert drifts[True] < 0.7 * drifts[False]


def test_the_first_task_is_not_held_back() -> None:
    """Before any task has ended, protected and unprotected training are the same."""
    heads = []
    for protect in (True, False):
        torch.manual_seed(0)
        case = STRICT_CASES["strict-stream"]
        model = get_peft_model(case.base(), case.config(protect=protect)).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        model.protect(optimizer)
        model.start_task("A")
        steps(model, optimizer, seed=1)
        heads.append(shared_of(model).router.head.detach().clone())
    assert torch.equal(heads[0], heads[1])


def test_removing_the_hooks_ends_the_protection() -> None:
    case = STRICT_CASES["strict-stream"]
    model = get_peft_model(case.base(), case.config()).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for handle in model.protect(optimizer):
        handle.remove()
    model.start_task("A")
    atoms = steps(model, optimizer, seed=1)
    assert (atoms[-1].norm(dim=1) - 1).abs().max() > 1e-4


def test_head_directions_left_fall_task_by_task() -> None:
    model, optimizer, _ = after_task_a(STRICT_CASES["strict-stream"])
    features = len(shared_of(model).projector)
    left = [model.task_statistics()["head_directions_left"]]
    for task in range(3):
        model.start_task(f"task {task}")
        steps(model, optimizer, seed=task + 2, count=2)
        model.end_task()
        left.append(model.task_statistics()["head_directions_left"])
    assert features > left[0] > left[1] > left[2] > left[3] > 0
