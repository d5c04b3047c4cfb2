"""What a user may rely on, for every method and model family: one matrix, every case through every test."""

import copy

import pytest
import torch
from families import (
    EDIT_CASES,
    HIMALAYA_STREAM,
    HIMALAYA_WEIGHTS,
    PADDING,
    STATIC_CASES,
    STRICT_CASES,
    Case,
    random_tokens,
)
from peft import (
    AutoPeftModelForCausalLM,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer

ALL_CASES = HIMALAYA_STREAM | HIMALAYA_WEIGHTS | STRICT_CASES | STATIC_CASES | EDIT_CASES
# Another model under a method that goes through the same lines on the first one: `make test-docs` runs these.
MORE_MODELS = (
    *("himalaya-opt", "himalaya-qwen2-oblong", "strict-residual-norm", "lilac-llama", "coltas-llama", "glodis-opt"),
    *("o_lora-llama", "loreft-qwen2", "loreft-opt"),
)
pytestmark = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in MORE_MODELS))
        for name, case in ALL_CASES.items()
    ],
)


def logits_of(model: torch.nn.Module, tokens: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens() if tokens is None else tokens).logits


def train_one_step(model: PeftModel) -> None:
    model.train()
    torch.manual_seed(0)  # the gates are sampled in training
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model(input_ids=random_tokens(), labels=random_tokens()).loss.backward()
    optimizer.step()
    model.eval()


def test_a_fresh_adapter_is_the_base_model_bit_for_bit(case: Case) -> None:
    assert torch.equal(logits_of(case.adapted(fresh=True)), logits_of(case.base()))
    training = case.adapted(fresh=True).train()
    assert torch.equal(logits_of(training), logits_of(case.base()))


def test_an_adapter_that_is_not_fresh_changes_the_outputs(case: Case) -> None:
    """Without this, most tests below could not fail."""
    assert (logits_of(case.adapted()) - logits_of(case.base())).abs().max() > 1e-2


def test_disabling_the_adapter_gives_the_base_model(case: Case) -> None:
    model = case.adapted()
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(case.base()))
    assert not torch.equal(logits_of(model), logits_of(case.base()))


@pytest.mark.parametrize("name", ["default", "another"])
def test_a_saved_adapter_comes_back_bit_for_bit(case: Case, name: str, tmp_path) -> None:
    model = case.adapted()
    model.start_task("first")
    train_one_step(model)
    model.end_task()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.base(), tmp_path, adapter_name=name).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))
    before = get_peft_model_state_dict(model)
    after = get_peft_model_state_dict(loaded, adapter_name=name)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
        assert value.dtype == after[key].dtype, key
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trainable = PeftModel.from_pretrained(case.base(), tmp_path, is_trainable=True)
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_the_auto_class_loads_base_and_adapter(case: Case, tmp_path) -> None:
    case.base().save_pretrained(tmp_path / "base")
    base = type(case.base()).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, case.config()).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_only_the_adapter_learns(case: Case) -> None:
    model = case.adapted()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    learning = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all(case.prefix in name for name in learning)
    assert not any(case.prefix in name for name in frozen)
    train_one_step(model)
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None, name
            assert torch.equal(parameter, frozen[name]), name
        else:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
            assert not torch.equal(parameter, learning[name]), name


def test_a_new_adapter_learns_even_from_the_no_op(case: Case) -> None:
    model = case.adapted(fresh=True).train()
    tokens = random_tokens()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(12):
        loss = model(input_ids=tokens, labels=tokens).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_several_adapters_live_side_by_side(case: Case) -> None:
    # A method with a seed of its own starts elsewhere with another one, the others wherever torch's state is.
    other = {"seed": 1} if hasattr(case.config(), "seed") else {}
    model = case.adapted()
    first = logits_of(model)
    torch.manual_seed(1)
    model.add_adapter("second", case.config(**other))
    model.eval()
    assert torch.equal(logits_of(model), first)  # adding does not switch
    model.set_adapter("second")
    model.eval()
    second = logits_of(model)
    base = case.base()
    torch.manual_seed(1)
    assert torch.equal(second, logits_of(get_peft_model(base, case.config(**other)).eval()))
    assert not torch.equal(second, first)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning
    assert all("second" in name for name in learning)
    model.set_adapter("default")
    assert torch.equal(logits_of(model), first)
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), first)
    assert not any("second" in name for name in model.state_dict())
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert all("second" not in getattr(layer, name) for layer in layers for name in layer.adapter_layer_names)


def test_unloading_gives_the_base_model_back(case: Case) -> None:
    base = case.adapted().unload()
    assert torch.equal(logits_of(base), logits_of(case.base()))
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())
    assert base.state_dict().keys() == case.base().state_dict().keys()


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_generation_without(case: Case, beams: int) -> None:
    model, tokens = case.adapted(), random_tokens(length=5)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams}
    settings["attention_mask"] = torch.ones_like(tokens)
    cached = model.generate(input_ids=tokens, use_cache=True, **settings)
    assert cached.shape == (2, 13)
    assert torch.equal(cached, model.generate(input_ids=tokens, use_cache=False, **settings))
    if beams == 1:  # every new token is the likeliest one of a single pass over the whole text
        assert torch.equal(logits_of(model, cached)[:, 4:-1].argmax(-1), cached[:, 5:])


def test_left_padding_does_not_change_the_answer(case: Case) -> None:
    model = case.adapted()
    short, long = random_tokens(1, batch=1, length=4), random_tokens(2, batch=1, length=9)
    padding = torch.full((1, 5), PADDING)
    batch = torch.cat([torch.cat([padding, short], dim=1), long])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = model.generate(input_ids=batch, attention_mask=mask, **settings)[:, 9:]
    for row, prompt in zip(together, (short, long), strict=True):
        alone = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **settings)
        assert torch.equal(row, alone[0, prompt.shape[1] :])


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(case: Case, reentrant: bool) -> None:
    def loss_and_gradients(checkpointing: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = case.adapted().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(0)  # the gates are sampled in training
        loss = model(input_ids=random_tokens(), labels=random_tokens()).loss
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    loss, gradients = loss_and_gradients(False)
    checkpointed_loss, checkpointed = loss_and_gradients(True)
    torch.testing.assert_close(checkpointed_loss, loss, rtol=0, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_a_16_bit_base_model_keeps_a_32_bit_adapter(case: Case, tmp_path) -> None:
    base = case.base().bfloat16()
    fresh = get_peft_model(copy.deepcopy(base), case.config(fresh=True)).eval()
    assert torch.equal(logits_of(fresh), logits_of(base))
    model = get_peft_model(copy.deepcopy(base), case.config()).eval()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits_of(model).dtype == torch.bfloat16
    train_one_step(model)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_a_token_changes_no_logit_before_it(case: Case) -> None:
    model, tokens = case.adapted(), random_tokens()
    before = logits_of(model, tokens)
    for position in (1, 6, 11):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] % 100) + 1
        assert (changed != tokens).any()
        after = logits_of(model, changed)
        assert torch.equal(before[:, :position], after[:, :position])
        assert not torch.equal(before[:, position:], after[:, position:])


def test_a_model_that_was_cast_to_16_bits_is_saved_and_loaded(case: Case, tmp_path) -> None:
    model = case.adapted()
    train_one_step(model)
    model.to(torch.bfloat16)
    cast = logits_of(model).float()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.base().bfloat16(), tmp_path).eval()
    assert torch.cosine_similarity(logits_of(loaded).float(), cast, dim=-1).min() > 0.999
    full = PeftModel.from_pretrained(case.base(), tmp_path, is_trainable=True)
    assert {p.dtype for p in full.parameters() if p.requires_grad} == {torch.float32}
    assert logits_of(full.eval()).isfinite().all()
