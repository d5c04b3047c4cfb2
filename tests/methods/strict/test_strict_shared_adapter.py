"""The shared state of an adapter: its forward pass against dense matrices, its size, its norms, what it stores."""

import json
from pathlib import Path

import pytest
import torch
from families import llama, random_tokens
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors import safe_open

from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig, StrictAdapter
from himalaya_adapter.methods.himalaya_strict.router import FINAL_TEMPERATURE_SHARE, budget_shift, task_code
from himalaya_adapter.methods.himalaya_strict.update import LARGEST_TREE_BONUS

WIDTH = 48
SEEDS = st.integers(0, 2**32 - 1)

# Every tensor that an adapter may store. Nothing else may appear: no tokens, no text, nothing per task or layer.
SCHEMA = {
    "dictionary.core": torch.float32,
    "dictionary.elastic": torch.float32,
    "router.projection": torch.float32,
    "router.offset": torch.float32,
    "router.head": torch.float32,
    "tree.thresholds": torch.float32,
    "tree.axes": torch.int64,
    "tree.path": torch.int64,
    "tree.spread": torch.float32,
    "code": torch.float32,
    "in_use": torch.bool,
    "own": torch.bool,
    "importance": torch.float32,
    "tasks_learnt": torch.int64,
    "head_triangle": torch.float32,
    "growth.residuals": torch.int8,
    "growth.similarities": torch.float32,
    "growth.seen": torch.int64,
    "growth.observed": torch.int64,
    "consolidation.code_moment": torch.float32,
    "consolidation.code_use": torch.float32,
    "statistics.latent_moment": torch.float32,
    "statistics.atom_usage": torch.float32,
    "statistics.gate_total": torch.float32,
    "statistics.tokens_seen": torch.float32,
    "statistics.fisher": torch.float32,
    "memory.covariance": torch.float32,
    "memory.means": torch.float32,
    "memory.codes": torch.bool,
    "memory.tasks": torch.int64,
    "memory.closed": torch.int64,
    "memory.task_moment": torch.float32,
    "update_norm_max": torch.float32,
    "atom_norm_max": torch.float32,
}


def shared_adapter(seed: int = 0, **changes) -> StrictAdapter:
    """An adapter in evaluation mode and 64 bits, all slots in use, whose gain is not 0."""
    config = HimalayaStrictConfig(init_weights=False, seed=seed, hidden_params=20_000, code_width=16, **changes)
    shared = StrictAdapter(config, WIDTH).double().eval()
    shared.in_use.fill_(True)
    return shared


def route(shared: StrictAdapter, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients and gain of tokens with these projections, as the adapter is now."""
    return shared.update.route(projected, shared.update.routes(shared.code, shared.in_use))


def dense_bonus(shared: StrictAdapter, query: torch.Tensor) -> torch.Tensor:
    """What the tree adds to the gate logits ``(k,)`` of one token: a product of sigmoid differences for each atom."""
    tree, elastic = shared.tree, len(shared.dictionary.elastic)
    membership = torch.ones(elastic, dtype=query.dtype)
    for atom in range(elastic):
        node = 0
        for child in tree.path[atom].tolist():
            borders = [-torch.inf, *tree.thresholds[node].detach().sort().values.tolist(), torch.inf]
            position, spread = query[tree.axes[node]], tree.spread[node]
            above, below = ((position - border) / spread for border in borders[child : child + 2])
            membership[atom] *= torch.sigmoid(above) - torch.sigmoid(below)
            node = node * tree.fanout + 1 + child
    below = torch.log(membership.max() / membership)
    bonus = -below * LARGEST_TREE_BONUS / (LARGEST_TREE_BONUS + below)
    return torch.cat([torch.zeros(shared.config.core_atoms, dtype=query.dtype), bonus])


def dense_matrices(shared: StrictAdapter, inputs: torch.Tensor, output_width: int) -> torch.Tensor:
    """The update matrices ``(tokens, m, n)`` as docs/method.md defines them, token by token, all vectors dense."""
    config, width = shared.config, inputs.shape[-1]
    atoms, projection = shared.dictionary.atoms().detach(), shared.router.projection
    matrices = []
    for token in inputs:
        x = token / token.square().mean().sqrt()
        query = projection[:, :width] @ x - shared.router.offset
        features = torch.kron(torch.cat([torch.tanh(query), torch.ones(1, dtype=query.dtype)]), shared.code)
        outputs = shared.router.head.detach().flatten(1) @ features
        a, u, gain = outputs[:40], outputs[40:80], torch.tanh(outputs[80])
        if config.gain == "fixed":
            gain = torch.ones_like(gain)
        if config.index != "scan":
            a = a + dense_bonus(shared, query)
        scores = a - budget_shift(a, 3, config.temperature_init * FINAL_TEMPERATURE_SHARE)
        chosen = [int(i) for i in scores.argsort(descending=True)[:3] if scores[i] > 0] or [int(scores.argmax())]
        sparse = torch.zeros_like(u)
        sparse[chosen] = u[chosen]
        r_in, r_out = sparse @ atoms[:, :width], sparse @ atoms[:, :output_width]
        matrix = gain * torch.outer(r_out / r_out.norm(), r_in / r_in.norm())
        matrices.append(matrix / shared.dictionary.width**0.5 if config.norm_target == "residual" else matrix)
    return torch.stack(matrices)


@pytest.mark.parametrize("index", [{"index": "scan"}, {}, {"fanout": 4, "leaf_size": 1}], ids=["scan", "flat", "deep"])
@pytest.mark.parametrize("norm_target", ["update", "residual"])
@pytest.mark.parametrize("gain", ["learned", "fixed"])
@pytest.mark.parametrize(
    ("placement", "widths"),
    [("residual_stream", (48, 48)), ("weights", (48, 48)), ("weights", (48, 20)), ("weights", (20, 48))],
)
def test_the_forward_pass_is_the_dense_formula(placement, widths, gain, norm_target, index) -> None:
    shared = shared_adapter(placement=placement, gain=gain, norm_target=norm_target, **index)
    shared.set_task("dense")
    generator = torch.Generator().manual_seed(0)
    shared.router.offset.copy_(torch.randn(len(shared.router.offset), generator=generator))
    if shared.tree is not None:
        with torch.no_grad():  # as after training
            shared.tree.thresholds += 0.3 * torch.randn(shared.tree.thresholds.shape, generator=generator)
    inputs = torch.randn(30, widths[0], generator=generator, dtype=torch.float64) * 5
    matrices = dense_matrices(shared, inputs, widths[1])
    rms = inputs.square().mean(-1, keepdim=True).sqrt()
    acted_on = inputs / rms if placement == "residual_stream" else inputs
    expected = torch.einsum("tmn,tn->tm", matrices, acted_on)
    torch.testing.assert_close(shared(inputs, widths[1]).detach(), expected, rtol=1e-6, atol=1e-8)
    bound = 1 / WIDTH**0.5 if norm_target == "residual" else 1.0
    norms = torch.linalg.matrix_norm(matrices, 2)
    assert norms.max() <= bound * (1 + 1e-12)
    if gain == "fixed":
        torch.testing.assert_close(norms, torch.full_like(norms, bound), rtol=1e-9, atol=0)


@given(
    seed=SEEDS,
    placement=st.sampled_from(["residual_stream", "weights"]),
    head_scale=st.sampled_from([1e-3, 1.0, 1e3]),
    input_scale=st.sampled_from([1e-3, 1.0, 1e3]),
    training=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_state_lets_the_update_exceed_its_input(seed, placement, head_scale, input_scale, training, dtype) -> None:
    """``‖ΔW x‖ <= ‖x‖``: the bound on the norm, seen from outside, with atoms off the sphere and any head."""
    shared = shared_adapter(seed % 1000, placement=placement).float().train(training)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        shared.router.head.mul_(head_scale)
        shared.dictionary.elastic.mul_(torch.rand(16, 1, generator=generator) * 2 + 0.1)
    inputs = (torch.randn(20, WIDTH, generator=generator) * input_scale).to(dtype)
    update = shared(inputs, WIDTH).float()
    largest = WIDTH**0.5 if placement == "residual_stream" else inputs.float().norm(dim=-1)
    rounding = 1e-5 if dtype == torch.float32 else 2**-5
    assert update.isfinite().all()
    assert (update.norm(dim=-1) <= largest * (1 + rounding)).all()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_degenerate_inputs_stay_finite(scale: float) -> None:
    shared = shared_adapter().float()
    assert shared(torch.ones(1, WIDTH) * scale, WIDTH).isfinite().all()


def test_the_straight_through_gates_have_the_gradient_of_the_relaxed_ones() -> None:
    shared = shared_adapter().train()
    projected = torch.randn(10, len(shared.router.offset), dtype=torch.float64)
    torch.manual_seed(0)
    coefficients, _ = route(shared, projected)
    coefficients.sum().backward()
    gate_rows, coefficient_rows = shared.router.head.grad.flatten(1).split([40, 41])
    assert (gate_rows.abs().sum(1) > 0).all()  # gates that are off learn, too
    assert (coefficient_rows[:40].abs().sum(1) > 0).any()
    assert (shared.tree.thresholds.grad[0, :3] != 0).all()  # 16 atoms in leaves of 4: three thresholds


def test_the_gates_cool_down_over_a_task() -> None:
    """At the end of a task, sampled gates agree with those of inference far more often than at its start."""
    shared = shared_adapter().float()
    projected = torch.randn(2000, len(shared.router.offset), generator=torch.manual_seed(0))
    hard = route(shared, projected)[0] != 0
    shared.train()
    agreement = []
    for progress in (0.0, 1.0):
        shared.update.progress = progress
        agreement.append(((route(shared, projected)[0] != 0) == hard).all(-1).float().mean().item())
    assert agreement[1] > agreement[0] + 0.1
    shared.start_task("next")
    assert shared.update.temperature == shared.config.temperature_init


def test_slots_that_are_not_in_use_are_never_chosen() -> None:
    shared = shared_adapter()
    shared.in_use[::2] = False
    projected = torch.randn(500, len(shared.router.offset), dtype=torch.float64)
    for training in (True, False):
        coefficients, _ = route(shared.train(training), projected)
        assert (coefficients[:, ::2] == 0).all()
        assert (coefficients[:, 1::2] != 0).any(-1).all()


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_task_starts_as_the_base_model_whatever_was_learnt_before(name: str) -> None:
    """Codes of different tasks overlap a little; a new task must not inherit a mixture of what others learnt."""
    shared = shared_adapter()
    shared.start_task(name)
    inputs = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert shared(inputs, WIDTH).abs().max() < 1e-10
    shared.set_task("neither of them")
    assert shared(inputs, WIDTH).abs().max() > 1e-3


def test_a_saved_adapter_holds_the_tensors_of_its_schema_and_no_data(tmp_path: Path) -> None:
    secret, text_tokens = "canary-task-name", random_tokens(7)
    model = get_peft_model(llama(), HimalayaStrictConfig(task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.protect(optimizer)
    model.start_task(secret, {"input_ids": text_tokens, "labels": text_tokens})
    for _ in range(3):
        model(input_ids=text_tokens, labels=text_tokens).loss.backward()
        optimizer.step()
    model.end_task()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.iterdir())
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = file.keys()
        assert file.metadata() in (None, {"format": "pt"})
        stored = {key.removeprefix("base_model.himalaya_strict_shared."): file.get_tensor(key) for key in keys}
    assert {name: tensor.dtype for name, tensor in stored.items()} == SCHEMA
    # Integers could hold the tokens of a text: these count, or name an axis or a child of the tree.
    integers = {name: tensor for name, tensor in stored.items() if tensor.dtype == torch.int64}
    assert integers.pop("tree.axes").max() < len(stored["router.projection"])
    assert integers.pop("tree.path").max() < HimalayaStrictConfig().fanout
    assert all(tensor.shape == () for tensor in integers.values())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "HIMALAYA_STRICT"


@pytest.mark.parametrize("width", [576, 2048, 4096])
def test_the_router_and_the_adapter_stay_within_their_parameter_budgets(width: int) -> None:
    shared = StrictAdapter(HimalayaStrictConfig(), width)
    router = shared.router.head.numel() + shared.router.projection.numel()
    assert router <= 45_000
    if width == 576:
        assert sum(parameter.numel() for parameter in shared.parameters()) <= 62_000


def test_a_target_that_is_not_linear_is_named_with_its_type() -> None:
    with pytest.raises(TypeError, match=r"layers\.0\.mlp' is a LlamaMLP, not a linear module"):
        get_peft_model(
            llama(), HimalayaStrictConfig(task_type="CAUSAL_LM", placement="weights", target_modules=["mlp"])
        )


def test_the_code_of_the_task_is_what_is_stored() -> None:
    shared = shared_adapter()
    shared.set_task("b")
    torch.testing.assert_close(shared.code, task_code("b", 16).double())
