"""Merging: exact for methods whose update is one matrix per module, refused with the reason otherwise."""

import copy

import pytest
import torch
from families import STATIC_CASES, Case, llama, random_tokens
from peft import PeftModel, get_peft_model
from torch import nn

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods import ColtasConfig, GlodisConfig, LilacConfig, OLoraConfig
from himalaya_adapter.methods.linear_delta import LinearDeltaLayer

every_case = pytest.mark.parametrize("case", STATIC_CASES.values(), ids=STATIC_CASES.keys())
every_method = pytest.mark.parametrize("method", [LilacConfig, ColtasConfig, GlodisConfig, OLoraConfig])
# Logits are about 10; in float64 nothing but the last digits differs.
CLOSE = {"rtol": 0, "atol": 1e-9}


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
    torch.testing.assert_close(logits_of(model), attached, **CLOSE)
    changed = [name for name, weight in weights.items() if not torch.equal(weight, model.state_dict()[name])]
    assert len(changed) == sum(isinstance(module, LinearDeltaLayer) for module in model.modules())
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), base, **CLOSE)
    model.merge_adapter()
    model.unmerge_adapter()
    torch.testing.assert_close(logits_of(model), attached, **CLOSE)
    for name, weight in weights.items():
        torch.testing.assert_close(model.state_dict()[name], weight, **CLOSE)


@every_case
def test_merged_and_unloaded_the_model_has_its_own_modules_again(case: Case) -> None:
    model = adapted(case)
    attached = logits_of(model)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits_of(merged), attached, **CLOSE)
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
    torch.testing.assert_close(logits_of(model), attached, **CLOSE)
    model.unmerge_adapter()
    torch.testing.assert_close(logits_of(model), attached, **CLOSE)


@every_method
def test_a_safe_merge_of_a_damaged_adapter_changes_nothing(method: type) -> None:
    model = adapted(Case(llama, method=method))
    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.requires_grad).view(-1)[:] = torch.inf
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="merged with adapter default is not finite: the adapter is damaged"):
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
