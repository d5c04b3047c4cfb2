"""The channels' sizes: measured once, on the frozen model, with random tokens; and the update in their units."""

import pytest
import torch
from families import Case, llama, random_tokens
from learning import adapter_of, attached, learn, logits_of
from torch import nn

from himalaya_adapter.methods.himalaya.channels import STEPS, measure, sizes_of

LARGE, FACTOR = 5, 1000.0


def uneven() -> nn.Module:
    """A tiny Llama with one channel of its stream that is much larger than the others."""
    model = Case(llama).base()
    with torch.no_grad():
        model.get_input_embeddings().weight[:, LARGE] *= FACTOR
    return model


def layers_of(model: nn.Module) -> list[nn.Module]:
    return list(model.model.layers)


def test_a_large_channel_is_found_and_the_others_are_alike() -> None:
    model = uneven()
    codes = measure(model, layers_of(model), seed=0)
    assert codes.dtype == torch.int8
    assert int(codes.argmax()) == LARGE
    sizes, others = sizes_of(codes), torch.arange(len(codes)) != LARGE
    assert sizes[LARGE] > 2 * sizes[others].max()
    assert codes.float().mean().abs() < 1
    assert torch.equal(sizes_of(torch.tensor([0, STEPS, -STEPS], dtype=torch.int8)), torch.tensor([1.0, 2.0, 0.5]))


def test_they_are_the_roots_of_what_the_layers_return() -> None:
    """Against hidden states as transformers returns them."""
    model = uneven()
    tokens = torch.randint(0, model.config.vocab_size, (4, 33), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states[1]  # of the first layer
    logarithms = states[:, 1:].double().square().mean((0, 1)).sqrt().sqrt().log2()
    wanted = ((logarithms - logarithms.mean()) * STEPS).round().to(torch.int8)
    assert torch.equal(measure(model, layers_of(model)[:1], seed=0), wanted)


def test_a_channel_without_anything_in_it_has_a_size_too() -> None:
    model = uneven()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[0] = 0
        model.get_input_embeddings().weight[:, 0] = 0
    codes = measure(model, layers_of(model), seed=0)
    assert int(codes.argmin()) == 0
    assert int(codes.argmax()) == LARGE


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = uneven()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    first = measure(model, layers_of(model), seed=0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(layer._forward_hooks for layer in layers_of(model))
    assert torch.equal(measure(model, layers_of(model), seed=0), first)


def test_they_are_measured_at_the_first_step_and_never_again() -> None:
    model, other = attached(), attached()
    assert not adapter_of(model).channels.any()
    assert torch.equal(logits_of(model), logits_of(other))  # asking measures nothing
    assert not adapter_of(model).channels.any()
    learn(model, "a")
    learn(other, "b")
    channels = adapter_of(model).channels.clone()
    assert channels.any()
    assert torch.equal(adapter_of(other).channels, channels), "they depend on no task"
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] *= 100
    learn(model, "c")
    assert torch.equal(adapter_of(model).channels, channels)


def test_what_was_learnt_without_them_goes_on_without_them() -> None:
    model = attached()
    learn(model, "a")
    answers = logits_of(model)
    adapter_of(model).channels.zero_()
    alike = logits_of(model)
    assert not torch.equal(alike, answers)
    learn(model, "b")
    assert not adapter_of(model).channels.any()
    model.set_task("a")
    assert torch.equal(logits_of(model), alike)


def test_a_failed_task_leaves_a_fresh_adapter_fresh() -> None:
    model = attached()

    def fail() -> None:
        with model.learning("a"):
            model.train()
            model(input_ids=random_tokens(), labels=random_tokens()).loss.backward()
            assert adapter_of(model).channels.any()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not adapter_of(model).channels.any()
    learn(model, "a")
    assert adapter_of(model).channels.any()


def test_in_the_weights_there_is_no_stream_to_measure() -> None:
    model = attached(placement="weights")
    learn(model, "a")
    assert not adapter_of(model).channels.any()
