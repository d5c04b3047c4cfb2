"""What a task has used: counted once a step, without padding, and not at all for a step that is skipped."""

import copy

import pytest
import torch
from families import STRICT_CASES, random_tokens
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

from himalaya_adapter.methods.himalaya_strict import HimalayaStrictLayer, StrictAdapter
from himalaya_adapter.methods.himalaya_strict.statistics import DECAY, TaskStatistics

ATOMS, ELASTIC, LATENT = 7, 3, 4


def random_pass(seed: int, tokens: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, gates and probabilities of one pass, not a number at padding, and the mask of what counts."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(tokens, LATENT, generator=generator, dtype=torch.float64)
    latents[:, -1] = 1
    gates = (torch.rand(tokens, ATOMS, generator=generator) < 0.4).double()
    expected = torch.rand(tokens, 1, generator=generator, dtype=torch.float64)
    counted = torch.rand(tokens, generator=generator) < 0.8
    latents[~counted] = torch.nan
    return latents, gates, expected, counted


@given(actions=st.lists(st.sampled_from(["pass", "fold", "discard"]), max_size=12), seed=st.integers(0, 10_000))
def test_only_what_is_folded_counts(actions: list[str], seed: int) -> None:
    statistics = TaskStatistics(ATOMS, ELASTIC, LATENT).double()
    pending, counted = [], []
    for index, action in enumerate(actions):
        if action == "pass":
            pending.append(random_pass(seed + index))
            statistics.add(*pending[-1])
        elif action == "fold":
            statistics.fold()
            counted += pending
            pending = []
        else:
            statistics.discard()
            pending = []
    empty = [torch.zeros(0, width, dtype=torch.float64) for width in (LATENT, ATOMS, 1)]
    kept = [[part[mask] for part in parts] for *parts, mask in counted]
    latents, gates, expected = (torch.cat(part) for part in zip(empty, *kept, strict=True))
    torch.testing.assert_close(statistics.latent_moment, latents.T @ latents)
    torch.testing.assert_close(statistics.atom_usage, gates.sum(0))
    torch.testing.assert_close(statistics.gate_total, expected.sum())
    assert statistics.tokens_seen == len(latents)
    torch.testing.assert_close(statistics.usage, gates.mean(0) if len(gates) else torch.zeros(ATOMS).double())


def test_a_new_task_starts_from_nothing_and_pending_passes_are_not_stored() -> None:
    statistics = TaskStatistics(ATOMS, ELASTIC, LATENT).double()
    statistics.add(*random_pass(0))
    assert not any(tensor.any() for tensor in statistics.state_dict().values())
    statistics.fold()
    statistics.observe_gradient(torch.ones(ELASTIC, 5, dtype=torch.float64))
    assert all(tensor.any() for tensor in statistics.state_dict().values())
    statistics.add(*random_pass(1))
    statistics.clear()
    statistics.fold()
    assert not any(tensor.any() for tensor in statistics.state_dict().values())


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 12))
def test_the_fisher_information_is_a_decaying_sum_of_squared_gradients(seed: int, steps: int) -> None:
    statistics = TaskStatistics(ATOMS, ELASTIC, LATENT).double()
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(steps, ELASTIC, 6, generator=generator, dtype=torch.float64)
    for gradient in gradients:
        statistics.observe_gradient(gradient)
    weights = DECAY ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(statistics.fisher, torch.einsum("s,sad->a", weights, gradients.square()))


# In training ---------------------------------------------------------------------------------------------------


def training(name: str = "strict-stream") -> tuple[PeftModel, StrictAdapter, torch.optim.Optimizer]:
    case = STRICT_CASES[name]
    model = get_peft_model(case.base(), case.config(growth_window=2, similarity_threshold_tau=1.0)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.protect(optimizer)
    model.start_task("a")
    return model, model.base_model.himalaya_strict_shared["default"], optimizer


def step(model: PeftModel, optimizer: torch.optim.Optimizer, seed: int, factor: float = 1.0) -> None:
    torch.manual_seed(seed)  # the gates are sampled
    (model(input_ids=random_tokens(seed), labels=random_tokens(seed)).loss * factor).backward()
    optimizer.step()
    optimizer.zero_grad()


def everything(shared: StrictAdapter, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All that a step may change, but for the largest norm seen, which counts every pass."""
    state = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"{index} {name}": tensor.clone() for name, tensor in moments.items()}
    return state


@pytest.mark.parametrize("poison", ["nan loss", "infinite loss", "nan states"])
def test_a_step_without_a_finite_gradient_changes_nothing(poison: str) -> None:
    model, shared, optimizer = training()
    for seed in range(3):
        step(model, optimizer, seed)
    before = everything(shared, optimizer)
    embeddings = model.get_input_embeddings()
    if poison == "nan states":  # as when a 16-bit base model overflows
        handle = embeddings.register_forward_hook(lambda _, __, output: output * float("nan"))
        step(model, optimizer, 2)
        handle.remove()
    else:
        step(model, optimizer, 2, float("nan" if poison == "nan loss" else "inf"))
    after = everything(shared, optimizer)
    assert shared.update_norm_max.isfinite()
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        if key != "update_norm_max":
            assert torch.equal(tensor, after[key]), key

    undisturbed, reference, its_optimizer = training()
    for seed in range(3):
        step(undisturbed, its_optimizer, seed)
    step(model, optimizer, 3)
    step(undisturbed, its_optimizer, 3)
    expected = everything(reference, its_optimizer)
    assert not torch.equal(expected["router.head"], before["router.head"])
    for key, tensor in everything(shared, optimizer).items():
        if key != "update_norm_max":
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", ["strict-stream", "strict-residual-norm"])
def test_padding_does_not_count(name: str) -> None:
    """The draws of the gates are one per layer, so a padded batch uses what the same batch without padding uses."""
    tokens = random_tokens(0, 3, 9)
    padded = torch.cat([tokens, torch.zeros(3, 5, dtype=torch.int64)], dim=1)
    model, shared, _ = training(name)
    statistics = []
    for batch in (tokens, padded):
        shared.statistics.clear()
        torch.manual_seed(0)
        with torch.no_grad():
            model(input_ids=batch, attention_mask=(batch != 0).long())
        shared.statistics.fold()
        statistics.append(copy.deepcopy(shared.statistics.state_dict()))
    adapted = sum(isinstance(module, HimalayaStrictLayer) for module in model.modules())
    assert statistics[0]["tokens_seen"] == adapted * tokens.numel()
    for key, tensor in statistics[0].items():
        torch.testing.assert_close(statistics[1][key], tensor, rtol=1e-4, atol=1e-4, msg=key)


def test_evaluation_and_frozen_passes_are_not_counted() -> None:
    model, shared, _ = training()
    model.eval()(input_ids=random_tokens())
    shared.statistics.fold()
    assert shared.statistics.tokens_seen == 0
    with model.disable_adapter():
        model.train()(input_ids=random_tokens())
    shared.statistics.fold()
    assert shared.statistics.tokens_seen == 0


def test_accumulated_passes_count_once_each() -> None:
    model, shared, optimizer = training()
    for seed in range(3):
        model(input_ids=random_tokens(seed), labels=random_tokens(seed)).loss.backward()
    assert shared.statistics.tokens_seen == 0
    optimizer.step()
    assert shared.statistics.tokens_seen == 3 * random_tokens().numel() * 2  # passes, tokens, layers
