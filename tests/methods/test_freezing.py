"""Frozen routing: one update for all tokens, which is then a matrix that can be merged or written as a LoRA."""

import copy
from pathlib import Path

import pytest
import torch
from families import CASES, OBLONG, SQUARE, Case, examples, llama, random_tokens
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model, save_as_lora, set_peft_model_state_dict

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya import HimalayaLayer

WEIGHTS = {name: case for name, case in CASES.items() if case.changes.get("placement") == "weights"}
WEIGHTS["llama-fixed-gain-oblong"] = Case(llama, OBLONG | {"gain": "fixed", "index": "scan"})
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
on_weights = pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS.keys())
# Logits are about 10; in float64 nothing but the last digits differs.
CLOSE = {"rtol": 0, "atol": 1e-9}


def adapted(case: Case) -> PeftModel:
    """A model in float64 with an adapter that has learnt nothing and does something."""
    base = case.base().double()
    return get_peft_model(base, case.config()).double().eval()


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens()).logits


@every_case
def test_frozen_all_tokens_and_layers_have_the_same_update(case: Case) -> None:
    """The oracle: the routing at z = 0, r and its slices as dense vectors, γ r_m r_nᵀ times each layer's input."""
    model = adapted(case)
    model.freeze_routing("a")
    shared = model.base_model.himalaya_shared["default"]
    with torch.no_grad():
        head = torch.einsum("e,ole->ol", shared.code, shared.router.head)[:, -1]
        gates, coefficients, gain = head[:40], head[40:80], head[80]
        if shared.tree is not None:
            membership = shared.tree.log_membership(torch.zeros(1, len(shared.router.projection)).double())[0]
            below = membership.max() - membership
            gates[24:] -= below / (1 + below / 0.5)
        on = torch.zeros(40).double().index_fill(0, gates.masked_fill(~shared.in_use, -1e4).topk(3).indices, 1)
        direction = (on * coefficients) @ shared.dictionary.atoms()
        gamma = torch.tanh(gain) if shared.config.gain == "learned" else torch.ones(())
        if shared.config.norm_target == "residual":
            gamma = gamma / shared.width**0.5
    updates = []

    def compare(layer: HimalayaLayer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0]
        inward, outward = direction[: x.shape[-1]], direction[: output.shape[-1]]
        if shared.config.placement == "residual_stream":
            x = x / x.square().mean(-1, keepdim=True).sqrt()
        wanted = gamma * (x @ inward / inward.norm())[..., None] * (outward / outward.norm())
        updates.append((output - layer.get_base_layer()(inputs[0]), wanted))

    handles = [layer.register_forward_hook(compare) for layer in model.modules() if isinstance(layer, HimalayaLayer)]
    logits_of(model)
    for handle in handles:
        handle.remove()
    assert len(updates) >= 2
    for found, wanted in updates:
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(found, wanted, **CLOSE)


@every_case
def test_a_frozen_routing_ends_with_the_next_task(case: Case) -> None:
    model = adapted(case)
    model.set_task("a")
    routed = logits_of(model)
    model.freeze_routing("a")
    frozen = logits_of(model)
    assert (frozen - routed).abs().max() > 1e-3
    model.freeze_routing("b")
    assert (logits_of(model) - frozen).abs().max() > 1e-3
    model.set_task("a")
    assert torch.equal(logits_of(model), routed)
    model.freeze_routing("a")
    model.start_task("c")
    assert not model.base_model.himalaya_shared["default"].frozen


@on_weights
def test_frozen_merged_and_converted_are_the_same_model(case: Case, tmp_path: Path) -> None:
    model = adapted(case)
    base = logits_of(case.base().double())
    model.train()  # as get_peft_model leaves it: the merge must not depend on it
    model.freeze_routing("a")
    frozen = logits_of(model.eval())
    assert (frozen - base).abs().max() > 1e-3
    model.train().merge_adapter()
    torch.testing.assert_close(logits_of(model.eval()), frozen, **CLOSE)
    model.unmerge_adapter()
    torch.testing.assert_close(logits_of(model), frozen, **CLOSE)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), base, **CLOSE)

    assert model.supports_lora_conversion()
    config, state = convert_to_lora(model, rank=1)
    lora = get_peft_model(case.base().double(), config).double().eval()
    set_peft_model_state_dict(lora, state)
    # PEFT's conversion goes through an SVD in float32.
    torch.testing.assert_close(logits_of(lora), frozen, rtol=0, atol=1e-4)
    save_as_lora(tmp_path, model, rank=1)
    loaded = PeftModel.from_pretrained(case.base().double(), tmp_path).double().eval()
    assert isinstance(loaded.peft_config["default"], LoraConfig)
    torch.testing.assert_close(logits_of(loaded), frozen, rtol=0, atol=1e-4)

    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits_of(merged), frozen, **CLOSE)
    assert merged.state_dict().keys() == case.base().state_dict().keys()


@on_weights
def test_the_merged_update_has_rank_one_and_a_norm_of_at_most_one(case: Case) -> None:
    model = adapted(case)
    model.freeze_routing("a")
    for layer in model.modules():
        if isinstance(layer, HimalayaLayer):
            singular = torch.linalg.svdvals(layer.get_delta_weight("default"))
            assert 1e-3 < singular[0] <= 1 + 1e-9
            assert singular[1] < 1e-12


def test_without_frozen_routing_merging_is_refused_and_names_it() -> None:
    model = Case(llama, SQUARE).adapted()
    model.set_task("a")
    before = logits_of(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match=r"token to token\. Call freeze_routing\(task\) first"):
            merge()
    assert not model.supports_lora_conversion()
    assert torch.equal(logits_of(model), before)


def test_beside_the_weights_merging_is_refused_and_names_the_export() -> None:
    model = Case(llama).adapted()
    model.freeze_routing("a")
    before = logits_of(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(
            NotImplementedError, match=r"output of a LlamaMLP.*'himalaya export RUN --format lora'"
        ) as e:
            merge()
    assert "\n" not in str(e.value)
    assert not model.supports_lora_conversion()
    assert torch.equal(logits_of(model), before)


def test_a_quantised_weight_is_not_merged_into() -> None:
    """The layer's own check; the weight is left alone."""
    model = Case(llama, SQUARE).adapted()
    model.freeze_routing("a")
    layer = next(module for module in model.modules() if isinstance(module, HimalayaLayer))
    layer.quantization_backend = pytest.importorskip("peft.utils.quantization_utils").Bnb4bitBackend()
    before = layer.get_base_layer().weight.clone()
    with pytest.raises(NotImplementedError, match=r"into a quantised weight \(bnb 4bit\) would round the update away"):
        layer.merge()
    assert torch.equal(layer.get_base_layer().weight, before)


@pytest.mark.parametrize("verb", ["set_task", "freeze_routing", "start_task"])
def test_a_merged_adapter_does_not_change_its_task(verb: str) -> None:
    model = adapted(Case(llama, SQUARE))
    model.freeze_routing("a")
    frozen = logits_of(model)
    model.merge_adapter()
    with pytest.raises(HimalayaError, match=rf"merged as it is for one task: unmerge it before {verb}\('b'\)"):
        getattr(model, verb)("b")
    torch.testing.assert_close(logits_of(model), frozen, **CLOSE)
    model.unmerge_adapter()
    getattr(model, verb)("b")
    assert (logits_of(model) - frozen).abs().max() > 1e-3


@every_case
def test_a_saved_adapter_is_not_frozen(case: Case, tmp_path: Path) -> None:
    model = case.adapted()
    model.set_task("a")
    routed = logits_of(model)
    model.freeze_routing("a")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.base(), tmp_path).eval()
    assert torch.equal(logits_of(loaded), routed)
    loaded.freeze_routing("a")
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert torch.equal(logits_of(copy.deepcopy(model)), logits_of(model))


def test_generation_is_frozen_too() -> None:
    """With a cache each step sees one token; the answer is that of the merged model."""
    model = adapted(Case(llama, SQUARE))
    model.freeze_routing("a")
    prompt = random_tokens(batch=3, length=6)
    answer = model.generate(input_ids=prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.merge_and_unload().generate(input_ids=prompt, max_new_tokens=8, do_sample=False), answer)


def test_a_frozen_adapter_is_not_trained() -> None:
    model = Case(llama).adapted()
    model.freeze_routing("a")
    with pytest.raises(HimalayaError, match=r"the routing is frozen: call set_task\(name\) before you train on"):
        model.train()(**examples())
    model.set_task("a")
    model.train()(**examples()).loss.backward()
    assert model.base_model.himalaya_shared["default"].router.head.grad.abs().max() > 0
