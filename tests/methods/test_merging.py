"""Merging: exact for methods whose update is one matrix per module, refused with the reason otherwise."""

import copy

import pytest
import torch
from families import HIMALAYA_STREAM, HIMALAYA_WEIGHTS, STATIC_CASES, Case, llama, random_tokens
from peft import PeftModel, get_peft_model
from torch import nn

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.coltas import ColtasConfig
from himalaya_adapter.methods.glodis import GlodisConfig
from himalaya_adapter.methods.himalaya import HimalayaConfig
from himalaya_adapter.methods.lilac import LilacConfig
from himalaya_adapter.methods.linear_delta import LinearDeltaLayer
from himalaya_adapter.methods.olora import OLoraConfig

MERGEABLE = HIMALAYA_WEIGHTS | STATIC_CASES
every_case = pytest.mark.parametrize("case", MERGEABLE.values(), ids=MERGEABLE.keys())
every_method = pytest.mark.parametrize("method", [LilacConfig, ColtasConfig, GlodisConfig, OLoraConfig])
# Logits are about 10; in float64 nothing but the last digits differs.
CLOSE = {"rtol": 0, "atol": 1e-9}
# HIMALAYA makes its factors, and applies them, in 32 bits whatever the model is in.
IN_32_BITS = {"rtol": 0, "atol": 1e-4}


def close_for(case: Case) -> dict[str, float]:
    return IN_32_BITS if case.method is HimalayaConfig else CLOSE


def adapted(case: Case) -> PeftModel:
    """A model and an adapter in float64."""
    base = case.base().double()
    torch.manual_seed(0)
    return get_peft_model(base, case.config()).double().eval()


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens()).logits


@every_case
def test_a_merged_adapter_answers_as_an_attached_one(case: Case) -> None:
    model = adapted(case)
    base, attached = logits_of(case.base().double()), logits_of(model)
    assert (attached - base).abs().max() > 1e-2
    weights = {name: weight.clone() for name, weight in model.state_dict().items() if "base_layer" in name}
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model), attached, **close_for(case))
    changed = [name for name, weight in weights.items() if not torch.equal(weight, model.state_dict()[name])]
    assert len(changed) == sum(isinstance(module, LinearDeltaLayer) for module in model.modules())
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), base, **close_for(case))
    model.merge_adapter()
    model.unmerge_adapter()
    torch.testing.assert_close(logits_of(model), attached, **close_for(case))
    for name, weight in weights.items():
        torch.testing.assert_close(model.state_dict()[name], weight, **close_for(case))


@every_case
def test_merged_and_unloaded_the_model_has_its_own_modules_again(case: Case) -> None:
    model = adapted(case)
    attached = logits_of(model)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits_of(merged), attached, **close_for(case))
    assert not any(isinstance(module, LinearDeltaLayer) for module in merged.modules())
    assert merged.state_dict().keys() == case.base().state_dict().keys()


@every_case
def test_two_adapters_merge_to_the_sum_of_their_updates(case: Case) -> None:
    model = adapted(case)
    model.add_adapter("second", case.config())
    model.double()
    model.base_model.set_adapter(["default", "second"])
    attached = logits_of(model.eval())
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model), attached, **close_for(case))
    model.unmerge_adapter()
    torch.testing.assert_close(logits_of(model), attached, **close_for(case))


@every_method
def test_a_safe_merge_of_a_damaged_adapter_changes_nothing(method: type) -> None:
    model = adapted(Case(llama, method=method))
    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.requires_grad).view(-1)[:] = torch.inf
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default"):
        model.merge_adapter(safe_merge=True)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


@every_method
def test_a_quantised_weight_is_not_merged_into(method: type) -> None:
    """The layer's own check; the whole path with 4-bit weights is tested in a process of its own."""
    model = adapted(Case(llama, method=method))
    layer = next(module for module in model.modules() if isinstance(module, LinearDeltaLayer))
    layer.quantization_backend = pytest.importorskip("peft.utils.quantization_utils").Bnb4bitBackend()
    with pytest.raises(NotImplementedError, match=r"into a quantised weight \(bnb 4bit\) would round the update away"):
        layer.merge()


def test_a_merged_adapter_does_not_change_its_task() -> None:
    model = adapted(Case(llama, method=ColtasConfig))
    model.set_task("first")
    first = logits_of(model)
    model.merge_adapter()
    with pytest.raises(HimalayaError, match=r"merged as it is for one task: unmerge it before set_task\('second'\)"):
        model.set_task("second")
    torch.testing.assert_close(logits_of(model), first, **CLOSE)
    model.unmerge_adapter()
    model.set_task("second")
    assert (logits_of(model) - first).abs().max() > 1e-2


@every_method
@pytest.mark.parametrize(
    ("target", "kind"), [("embed_tokens", "Embedding"), ("mlp", "LlamaMLP"), ("input_layernorm", "LlamaRMSNorm")]
)
def test_a_target_that_is_not_linear_is_refused_by_name(method: type, target: str, kind: str) -> None:
    config = method(task_type="CAUSAL_LM", target_modules=[target])
    wanted = rf"^target 'model\..*{target}' is a {kind}, not a linear module; {config.peft_type.value} adapts linear"
    with pytest.raises(TypeError, match=wanted):
        get_peft_model(llama(), config)


def test_a_task_of_himalaya_merges_as_it_is_and_stays_until_it_is_unmerged() -> None:
    torch.manual_seed(1)  # the same model whatever ran before: a merge's rounding depends on its weights
    model = get_peft_model(llama().eval(), HimalayaConfig(task_type="CAUSAL_LM", placement="weights"))
    answers = {}
    for seed, name in enumerate(("first", "second")):
        model.start_task(name)
        with torch.no_grad():
            model.base_model.himalaya_shared["default"].atoms.normal_(0, 0.05, generator=torch.manual_seed(seed))
        model.end_task()
        answers[name] = logits_of(model.eval())
    model.set_task("first")
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model), answers["first"], **IN_32_BITS)
    for call in (model.set_task, model.start_task):
        with pytest.raises(HimalayaError, match=r"merged as it is for one task: unmerge it before .*\('second'\)"):
            call("second")
    with pytest.raises(HimalayaError, match=r"unmerge it before end_task\(\)$"):
        model.end_task()
    with pytest.raises(HimalayaError, match=r"unmerge it before a prompt's task is found$"):
        model.infer_task(random_tokens())
    model.unmerge_adapter()
    model.set_task(None)
    with pytest.raises(HimalayaError, match=r"^each prompt chooses its task: call set_task\(name\) before"):
        model.merge_adapter()
    model.set_task("second")
    torch.testing.assert_close(logits_of(model.merge_and_unload(safe_merge=True)), answers["second"], **IN_32_BITS)


def test_the_residual_stream_has_no_weight_to_merge_into() -> None:
    model = HIMALAYA_STREAM["himalaya-llama"].adapted()
    before = logits_of(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="or learn the tasks with placement='weights', which merges exa"):
            merge()
    assert torch.equal(logits_of(model), before)
