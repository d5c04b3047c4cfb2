"""What a user may rely on with LoReFT and O-LoRA, for three model families."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import PADDING, llama, opt, qwen2, random_tokens
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import PreTrainedModel

from himalaya_adapter.methods import LoReftConfig, OLoraConfig

METHODS: dict[str, Callable[..., PeftConfig]] = {
    "loreft": lambda **more: LoReftConfig(task_type="CAUSAL_LM", r=4, **more),
    "loreft-first": lambda **more: LoReftConfig(task_type="CAUSAL_LM", r=4, first_positions=3, **more),
    "o_lora": lambda **more: OLoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], **more),
}
FAMILIES = {"llama": llama, "qwen2": qwen2, "opt": opt}
Configure = Callable[..., PeftConfig]
pytestmark = [
    pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES),
    pytest.mark.parametrize("config", METHODS.values(), ids=METHODS),
]


def base(family: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    return family().eval()


def adapted(family: Any, config: Configure, *, fresh: bool = False, **more: Any) -> PeftModel:
    model = base(family)
    torch.manual_seed(1)
    return get_peft_model(model, config(init_weights=fresh, **more)).eval()


def logits_of(model: torch.nn.Module, tokens: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens() if tokens is None else tokens).logits


def learn(model: PeftModel, steps: int = 2) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        loss = model.train()(input_ids=random_tokens(), labels=random_tokens()).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return losses


def test_a_fresh_adapter_is_the_base_model_bit_for_bit(family: Any, config: Configure) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = get_peft_model(base(family).to(dtype), config()).eval()
        assert torch.equal(logits_of(model), logits_of(base(family).to(dtype)))
        assert torch.equal(logits_of(model.train()), logits_of(base(family).to(dtype)))


def test_a_fresh_adapter_learns(family: Any, config: Configure) -> None:
    losses = learn(adapted(family, config, fresh=True), steps=10)
    assert losses[-1] < losses[0]


def test_disabling_the_adapter_gives_the_base_model(family: Any, config: Configure) -> None:
    model = adapted(family, config)
    assert (logits_of(model) - logits_of(base(family))).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(base(family)))
    assert not torch.equal(logits_of(model), logits_of(base(family)))


def test_a_saved_adapter_comes_back_bit_for_bit(family: Any, config: Configure, tmp_path) -> None:
    model = adapted(family, config)
    learn(model)
    model.save_pretrained(tmp_path / "adapter")
    base(family).save_pretrained(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(family), tmp_path / "adapter", "another", is_trainable=True)
    assert torch.equal(logits_of(loaded.eval()), logits_of(model))
    assert torch.equal(
        logits_of(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()), logits_of(model)
    )
    wanted = get_peft_model_state_dict(model)
    found = get_peft_model_state_dict(loaded, adapter_name="another")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name
        assert tensor.dtype == wanted[name].dtype, name
    learning = {name.replace("another", "default") for name, p in loaded.named_parameters() if p.requires_grad}
    assert learning == {name for name, p in model.named_parameters() if p.requires_grad}


def test_only_the_adapter_learns(family: Any, config: Configure) -> None:
    model = adapted(family, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(model)
    for name, parameter in model.named_parameters():
        is_adapter = "loreft_" in name or "o_lora_" in name
        assert parameter.requires_grad == is_adapter, name
        assert torch.equal(parameter, before[name]) == (not is_adapter), name
        assert parameter.grad is None if not is_adapter else parameter.grad.isfinite().all(), name


def test_several_adapters_live_side_by_side(family: Any, config: Configure) -> None:
    model = adapted(family, config)
    first = logits_of(model)
    model.add_adapter("second", config(init_weights=False))
    assert torch.equal(logits_of(model.eval()), first)  # adding does not switch
    model.set_adapter("second")
    assert not torch.equal(logits_of(model), first)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning
    assert all("second" in name for name in learning)
    model.set_adapter("default")
    assert torch.equal(logits_of(model), first)
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), first)
    assert not any("second" in name for name in model.state_dict())


def test_unloading_gives_the_base_model_back(family: Any, config: Configure) -> None:
    unloaded = adapted(family, config).unload()
    assert torch.equal(logits_of(unloaded), logits_of(base(family)))
    assert unloaded.state_dict().keys() == base(family).state_dict().keys()


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_generation_without(family: Any, config: Configure, beams: int) -> None:
    model, tokens = adapted(family, config), random_tokens(length=5)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams}
    settings["attention_mask"] = torch.ones_like(tokens)
    cached = model.generate(input_ids=tokens, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(input_ids=tokens, use_cache=False, **settings))


def test_left_padding_does_not_change_the_answer(family: Any, config: Configure) -> None:
    model = adapted(family, config)
    short, long = random_tokens(1, batch=1, length=4), random_tokens(2, batch=1, length=9)
    batch = torch.cat([torch.cat([torch.full((1, 5), PADDING), short], dim=1), long])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = model.generate(input_ids=batch, attention_mask=mask, **settings)[:, 9:]
    for row, prompt in zip(together, (short, long), strict=True):
        alone = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **settings)
        assert torch.equal(row, alone[0, prompt.shape[1] :])


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(
    family: Any, config: Configure, reentrant: bool
) -> None:
    def loss_and_gradients(checkpointing: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = adapted(family, config).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        loss = model(input_ids=random_tokens(), labels=random_tokens()).loss
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    loss, gradients = loss_and_gradients(False)
    checkpointed_loss, checkpointed = loss_and_gradients(True)
    assert torch.equal(checkpointed_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_a_16_bit_base_model_keeps_a_32_bit_adapter(family: Any, config: Configure, tmp_path) -> None:
    frozen = base(family).bfloat16()
    model = get_peft_model(copy.deepcopy(frozen), config(init_weights=False)).eval()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits_of(model).dtype == torch.bfloat16
    learn(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(frozen), tmp_path).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))


@pytest.mark.parametrize("position", [1, 2, 6])
def test_a_token_changes_no_logit_before_it(family: Any, config: Configure, position: int) -> None:
    model, tokens = adapted(family, config), random_tokens()
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] % 100) + 1
    before, after = logits_of(model, tokens), logits_of(model, changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])
