"""The operator in ONNX Runtime computes what the adapter computes in PyTorch, in each of its forms."""

from pathlib import Path
from typing import Any

import pytest
import torch

from himalaya_adapter.deploy.onnx.adapter_graph import adapter_cases, adapter_graph
from himalaya_adapter.deploy.onnx.parity import compare, open_session
from himalaya_adapter.deploy.onnx.tables import Tables, become_release, make_tables
from himalaya_adapter.deploy.onnx.update import exported_update
from himalaya_adapter.deploy.onnx.writing import finish, function_free, write_function_free, write_model
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya import HimalayaConfig, SharedAdapter
from himalaya_adapter.methods.himalaya.active_set import active_set

TASKS = ("first", "second", "third")
SMALL = {"core_atoms": 4, "elastic_atoms": 9, "leaf_size": 3, "hidden_params": 4000}
# How far the heads move from those that tasks start with: at 0.05 every token of a task uses the same atoms, at 2
# nearly each uses others.
CALM, USUAL, WILD = 0.05, 0.8, 2.0
FORMS = {
    "static": (64, {}, CALM, "FixedRouteUpdate", None),
    "dynamic": (64, {}, CALM, "RoutedUpdate", "dynamic"),
    "tree": (64, {}, WILD, "RoutedUpdateWithTree", "tree"),
    "guarded": (64, {}, USUAL, "GuardedUpdate", None),
    "wild": (64, {}, WILD, "GuardedUpdate", None),
    "too-few-atoms": (64, {"elastic_atoms": 6}, CALM, "GuardedUpdate", None),
    "odd-width": (56, {}, WILD, "RoutedUpdateWithTree", "tree"),
    "eight-bits": (64, {"quantisation_bits": 8}, WILD, "GuardedUpdate", None),
    "half-precision": (64, {"quantisation_bits": 16}, USUAL, "GuardedUpdate", None),
    "fixed-gain": (64, {"gain": "fixed"}, USUAL, "GuardedUpdate", None),
    "residual-norm": (64, {"norm_target": "residual"}, USUAL, "GuardedUpdate", None),
    "scan": (64, {"index": "scan"}, WILD, "GuardedUpdate", None),
    "deep-tree": (64, {"leaf_size": 1, "fanout": 4}, WILD, "RoutedUpdateWithTree", "tree"),
    "one-atom": (64, {"expected_active_atoms": 1}, WILD, "GuardedUpdate", None),
}


def trained(width: int, changes: dict[str, Any], noise: float) -> tuple[SharedAdapter, HimalayaConfig]:
    config = HimalayaConfig(**SMALL | changes)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        shared = SharedAdapter(config, width).eval()
        shared.fit_projection(torch.randn(200, width) * torch.linspace(0.2, 2, width))
        for task in TASKS:
            shared.start_task(task)
            shared.end_task()
        shared.router.head.add_(torch.randn_like(shared.router.head), alpha=noise)
        shared.router.head[-1] += 0.3
        if shared.tree is not None:
            shared.tree.thresholds += 0.3 * torch.randn_like(shared.tree.thresholds)
    return shared, config


def tables_of(shared: SharedAdapter, config: HimalayaConfig) -> Tables:
    return make_tables(become_release(shared, config), config, TASKS)


@pytest.mark.parametrize("form", FORMS)
def test_parity(form: str, tmp_path: Path) -> None:
    width, changes, noise, function, routing = FORMS[form]
    shared, config = trained(width, changes, noise)
    update = exported_update(tables_of(shared, config), routing)
    assert update.function == function
    path = tmp_path / "adapter.onnx"
    write_model(finish(adapter_graph(update, width, 18), {"tasks": list(TASKS)}), path)
    states = torch.randn(40, width, generator=torch.Generator().manual_seed(1))
    states[3] = 0
    cases = adapter_cases(shared, TASKS, states)
    calm = adapter_cases(shared, TASKS, states[:1])  # few tokens at once: the guard holds more often
    session = open_session(path, threads=1)
    found = compare(session, [*cases, *calm])["update"]
    assert found["largest"] > 0.02
    assert found["max_abs"] < 1e-6
    assert [node.name for node in session.get_outputs()] == ["update"]
    write_function_free(path, tmp_path / function_free(path.name))
    assert compare(open_session(tmp_path / function_free(path.name), threads=1), cases)["update"]["max_abs"] < 1e-6


def test_atoms_are_those_of_the_release() -> None:
    for changes in ({}, {"quantisation_bits": 8}, {"quantisation_bits": 16}):
        shared, config = trained(64, changes, USUAL)
        tables = tables_of(shared, config)
        torch.testing.assert_close(tables.atoms, shared.dictionary.atoms().detach()[shared.in_use])


@pytest.mark.parametrize("noise", [CALM, USUAL, WILD])
def test_positive_margins_mean_the_usual_atoms(noise: float) -> None:
    shared, config = trained(64, {}, noise)
    tables = tables_of(shared, config)
    kept = shared.in_use.nonzero().flatten()
    scale = torch.tensor([0.3, 1.0, 3.0, 10.0]).repeat_interleave(500)[:, None]
    projected = torch.randn(2000, len(tables.offset), generator=torch.Generator().manual_seed(2)) * scale
    latents = torch.cat([torch.tanh(projected - tables.offset), torch.ones(2000, 1)], dim=1)
    held = torch.zeros(2000, dtype=torch.bool)
    for task, name in enumerate(TASKS):
        usual = active_set(tables.task_heads[task, : len(kept)], tables.most, tables.temperature, tables.core_atoms)
        shared.set_task(name)
        with torch.no_grad():
            coefficients, _ = shared.route(projected)
        used = torch.zeros_like(coefficients, dtype=torch.bool)
        used[:, kept[usual.atoms]] = True
        holds = (latents @ usual.margins.T > 0).all(1)
        assert torch.equal((coefficients != 0)[holds], used[holds])
        held |= holds
        assert noise != CALM or len(usual.margins) == 0
    assert noise == WILD or held.float().mean() > 0.1


def test_a_form_that_is_not_exact_is_refused() -> None:
    tables = tables_of(*trained(64, {}, WILD))
    for routing in ("static", "dynamic"):
        with pytest.raises(HimalayaError, match=f"routing '{routing}' is not exact for task number 0"):
            exported_update(tables, routing)
