"""What the frozen model makes of prompts: hidden states that do not depend on what the adapter has learnt."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import Case, llama, opt, qwen2, random_tokens
from learning import PLACEMENTS, adapter_of, attached, learn, logits_of, prompts
from peft import get_peft_model
from torch import Tensor, nn

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.task_inference.frozen import as_frozen, middle_layer, middle_states


def states_of(model: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    embeddings = model.get_input_embeddings()(tokens)
    return middle_states(model, embeddings, torch.ones_like(tokens) if mask is None else mask)


@pytest.mark.parametrize("family", [llama, qwen2, opt])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_they_are_those_of_the_bare_model(family: Callable[..., Any], placement: str) -> None:
    tokens, bare = random_tokens(), Case(family).base()
    with torch.no_grad():
        wanted = bare(input_ids=tokens, output_hidden_states=True).hidden_states[1]
    model = attached(family, placement=placement)
    learn(model, "a")
    model.set_task("a")
    model.train()
    torch.testing.assert_close(states_of(model.base_model.model, tokens), wanted)
    assert model.training
    assert not any(module._disable_adapters for module in model.modules() if hasattr(module, "_disable_adapters"))
    assert not any(module._forward_hooks for name, module in model.named_modules() if name.endswith("layers.0"))


def test_the_middle_of_three_layers_is_the_second_and_the_pass_ends_there() -> None:
    model = Case(lambda: llama(3)).base()
    layers = model.model.layers
    assert middle_layer(model) is layers[1]
    ran: list[int] = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    states_of(model, random_tokens())
    assert ran == [0, 1]


def test_a_model_whose_layers_have_unusual_names_learns_but_needs_the_task_s_name() -> None:
    base = Case(llama).base()
    base.model.stages = base.model.layers
    del base.model.layers
    type(base.model).layers = property(lambda model: model.stages)
    try:
        config = HimalayaConfig(task_type="CAUSAL_LM", placement="weights", target_modules=["q_proj"])
        model = get_peft_model(base, config).eval()
        labels = random_tokens()
        labels[:, :4] = -100
        with model.learning("a"):
            model.train()
            model(input_ids=random_tokens(), labels=labels).loss.backward()
        assert model.tasks == ["a"]
        with pytest.raises(HimalayaError, match=r"^LlamaForCausalLM has an encoder, or no decoder layers by "):
            model.infer_task(random_tokens())
    finally:
        del type(base.model).layers


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    model, tokens = Case(opt).base(), random_tokens()  # its positions are learnt
    padding = torch.zeros(len(tokens), 3, dtype=torch.int64)
    columns = [padding, tokens][:: 1 if side == "left" else -1]
    masks = [padding, torch.ones_like(tokens)][:: 1 if side == "left" else -1]
    found = states_of(model, torch.cat(columns, 1), torch.cat(masks, 1))
    found = found[:, 3:] if side == "left" else found[:, :-3]
    torch.testing.assert_close(found, states_of(model, tokens))


def test_after_an_error_the_adapters_are_on_again() -> None:
    model = attached()
    learn(model, "a")
    model.set_task("a")
    wanted = logits_of(model)
    model.train()
    with as_frozen(model):
        assert not model.training
        assert not torch.equal(logits_of(model), wanted)
    with pytest.raises(RuntimeError, match="size"), as_frozen(model):
        torch.ones(2) @ torch.ones(3)
    assert model.training
    assert torch.equal(logits_of(model.eval()), wanted)


def test_what_was_learnt_before_changes_no_features() -> None:
    model, other = attached(), attached()
    learn(other, "a")
    for one in (model, other):
        one.start_task("b")
        one.observe_prompts(prompts(2))
    moments = [adapter_of(one).router.task_moment for one in (model, other)]
    assert torch.equal(*moments)
    before = moments[0].clone()
    for _ in range(30):  # after so many prompts more would add little
        model.observe_prompts(prompts(2))
    assert int(moments[0][-1, -1]) == 132
    assert before[-1, -1] == 6
