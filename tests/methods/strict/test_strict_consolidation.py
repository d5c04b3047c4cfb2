"""Consolidation: what stands in for an evicted atom, against dense solutions, and what it is worth to past tasks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize, pad

from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig, StrictAdapter
from himalaya_adapter.methods.himalaya_strict.consolidation import Consolidation
from himalaya_adapter.methods.himalaya_strict.protection import reset_head
from himalaya_adapter.methods.himalaya_strict.router import OWN_GATE, task_code

SEEDS = st.integers(0, 2**32 - 1)
CORE, ELASTIC, WIDTH = 24, 6, 48
ATOMS = CORE + ELASTIC


def random_rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_metric(residuals: torch.Tensor) -> torch.Tensor:
    width = residuals.shape[1]
    return residuals.T @ residuals / max(1, len(residuals)) + torch.eye(width, dtype=torch.float64) / width


# Who has used what ---------------------------------------------------------------------------------------------


@given(seed=SEEDS, tasks=st.integers(1, 12))
def test_the_superposition_returns_each_tasks_use_while_the_codes_are_independent(seed: int, tasks: int) -> None:
    consolidation = Consolidation(ATOMS, 32).double()
    codes = [task_code(f"{seed} {task}", 32).double() for task in range(tasks)]
    usage = random_rows(seed, tasks, ATOMS).clamp(0, 1)
    for code, use in zip(codes, usage, strict=True):
        consolidation.observe(code, use)
    found = torch.stack(codes) @ consolidation.users().T
    torch.testing.assert_close(found, usage, rtol=0, atol=1e-8)
    torch.testing.assert_close(consolidation.used_together(), usage.T @ usage, rtol=0, atol=1e-7)
    assert sum(tensor.numel() for tensor in consolidation.state_dict().values()) == 32 * 32 + ATOMS * 32


@given(seed=SEEDS, residuals=st.integers(0, 40), rank=st.sampled_from([4, 12, WIDTH]), copies=st.booleans())
def test_the_newcomer_is_the_atom_after_which_most_survives(seed, residuals, rank, copies) -> None:
    """Against every candidate in turn, each with all partners, solved densely; also among nearly dependent atoms."""
    atoms = normalize(random_rows(seed, ATOMS, rank) @ random_rows(seed + 1, rank, WIDTH), dim=1)
    metric_rows = normalize(random_rows(seed + 2, residuals, WIDTH), dim=1)
    metric, slot, partners, unusable = dense_metric(metric_rows), CORE + 1, [3, CORE], ATOMS - 1
    if copies:
        atoms[7] = atoms[3]  # a candidate that adds nothing to a partner
    consolidation = Consolidation(ATOMS, 32).double()
    use = torch.zeros(ATOMS, dtype=torch.float64)
    use[[*partners, slot, unusable]] = 1
    consolidation.observe(task_code("user", 32).double(), use)
    other = torch.zeros(ATOMS, dtype=torch.float64)
    other[5:9] = 1
    consolidation.observe(task_code("somebody else", 32).double(), other)
    usable = torch.arange(ATOMS) != unusable

    def share(chosen: list[int]) -> float:
        rows = atoms[chosen]
        weights = torch.linalg.pinv(rows @ metric @ rows.T, rtol=1e-10, hermitian=True) @ rows @ metric @ atoms[slot]
        error = atoms[slot] - weights @ rows
        return 1 - (error @ metric @ error / (atoms[slot] @ metric @ atoms[slot])).item()

    found = consolidation.stand_in(atoms, slot, consolidation.used_together(), usable, metric_rows, steps=20)
    candidates = [one for one in range(ATOMS) if one not in (*partners, slot, unusable)]
    shares = {one: share([*partners, one]) for one in candidates}
    assert found.newcomer in candidates
    assert shares[found.newcomer] >= max(shares.values()) - 1e-6
    assert set(found.weights.nonzero().flatten().tolist()) <= {*partners, found.newcomer}
    assert found.survives == pytest.approx(share([*partners, found.newcomer]), abs=1e-5)


# What past tasks notice ----------------------------------------------------------------------------------------


def route(shared: StrictAdapter, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients and gain of tokens with these projections, as the adapter is now."""
    return shared.update.route(projected, shared.update.routes(shared.code, shared.in_use))


def after_tasks(seed: int, tasks: int, atoms_per_task: int, index: str) -> tuple[StrictAdapter, dict]:
    """An adapter whose tasks have learnt random routings, and what each looked at: code, latent inputs, atoms."""
    config = HimalayaStrictConfig(
        elastic_atoms=ELASTIC, atoms_per_task=atoms_per_task, hidden_params=20_000, seed=seed, index=index
    )
    shared = StrictAdapter(config, WIDTH)
    past = {}
    torch.manual_seed(seed)  # the gates are sampled
    for task in range(tasks):
        name = f"{seed} {task}"
        shared.start_task(name)
        target = shared.router.task_head(shared.code).detach()
        own = shared.own.nonzero().flatten()
        noise = random_rows(seed * 100 + task, *target.shape).float()
        fillers = random_rows(seed * 100 + task, CORE).argsort()[: 3 - len(own)]  # core atoms on beside its own
        target[fillers, -1] = OWN_GATE - 2
        target[ATOMS + own] += noise[ATOMS + own]  # coefficients that depend on the token
        target[ATOMS + fillers] += noise[ATOMS + fillers]
        head = reset_head(shared.router.head.detach(), target, shared.projector, shared.code)
        projected = random_rows(seed * 100 + task, 200, len(shared.router.offset)).float()
        with torch.no_grad():
            shared.router.head.copy_(head)
            for part in projected.split(20):  # every pass draws its gates once
                route(shared.train(), part)
        shared.end_task()
        past[name] = (projected, shared.own.clone())
    centre = random_rows(seed, 1, WIDTH)
    for row in random_rows(seed + 1, 128, WIDTH) + 2 * centre:
        shared.growth.observe(row.float(), torch.tensor(0.5))
    return shared.eval(), past


@torch.no_grad()
def routing(shared: StrictAdapter, name: str, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients after the gates, and all gate logits and coefficients before them."""
    shared.set_task(name)
    latents = pad(torch.tanh(projected - shared.router.offset), (0, 1), value=1.0)
    outputs = latents @ shared.router.task_head(shared.code).T
    return route(shared, projected)[0], outputs[:, :-1]


@pytest.mark.slow
@pytest.mark.parametrize(("atoms_per_task", "index"), [(1, "learnable_kd_tree"), (2, "scan")])
@torch.no_grad()
def test_past_tasks_notice_an_eviction_less_with_consolidation_than_without(atoms_per_task: int, index: str) -> None:
    ratios, surviving = [], []
    for seed in range(8):
        shared, past = after_tasks(seed, ELASTIC // atoms_per_task, atoms_per_task, index)
        metric = dense_metric(shared.growth.unit_residuals().double())
        atoms = shared.dictionary.atoms().double()
        before = {name: routing(shared, name, projected) for name, (projected, _) in past.items()}
        assert shared.in_use.all()
        event = shared.evict()
        slot = event.slot
        surviving.append(event.survives)
        changed = torch.zeros(2, dtype=torch.float64)
        for name, (projected, own) in past.items():
            u, raw = before[name]
            u_after, raw_after = routing(shared, name, projected)
            assert not u_after[:, CORE + slot].any()  # whatever overwrites the atom does not reach the past
            assert (raw_after[:, CORE + slot] < -10).all()
            dropped = u.clone()
            dropped[:, CORE + slot] = 0
            errors = [(u.double() - one.double()) @ atoms for one in (u_after, dropped)]
            energies = torch.stack([(error @ metric * error).sum() for error in errors])
            if own[CORE + slot]:
                assert energies[1] > 0.1
                assert energies[0] <= energies[1]
            else:
                kept = torch.arange(2 * ATOMS) % ATOMS != CORE + slot
                torch.testing.assert_close(raw_after[:, kept], raw[:, kept], rtol=0, atol=1e-4)
                torch.testing.assert_close(u_after, u, rtol=0, atol=1e-4)
            changed += energies
        ratios.append((changed[0] / changed[1]).item())
    mean, expected = sum(ratios) / len(ratios), 1 - sum(surviving) / len(surviving)
    assert max(ratios) <= 1, ratios
    assert mean == pytest.approx(expected, abs=0.1), (mean, expected)


@pytest.mark.slow
def test_evictions_far_beyond_the_number_of_codes_keep_the_head_bounded() -> None:
    """With more tasks than a code has entries the superposition is no longer exact; it must not blow up."""
    config = HimalayaStrictConfig(elastic_atoms=3, atoms_per_task=1, hidden_params=4_000, code_width=8)
    shared = StrictAdapter(config, WIDTH).train()
    torch.manual_seed(0)  # the gates are sampled
    generator = torch.Generator().manual_seed(0)
    for task in range(150):
        shared.start_task(f"task {task}")
        with torch.no_grad():
            route(shared, torch.randn(20, len(shared.router.offset), generator=generator))
        shared.growth.observe(torch.randn(WIDTH, generator=generator), torch.tensor(0.5))
        shared.end_task()
    assert shared.router.head.isfinite().all()
    assert shared.router.head.abs().max() < 300
    assert shared.importance.isfinite().all()
