"""Every decoder that transformers builds in the usual way: recognised, left alone at first, learnt with."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from families import INIT_STD, VOCABULARY, llama, random_tokens
from learning import PLACEMENTS, SMALL, adapter_of, assert_same, attached, logits_of, snapshot
from peft import get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartForConditionalGeneration,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
)

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya import HashedLinear, HimalayaLayer, StreamLayer

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
LLAMA_LIKE = SIZES | {"intermediate_size": 96, "num_key_value_heads": 2, "initializer_range": INIT_STD}
OF_GEMMA = LLAMA_LIKE | {"head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE | {"head_dim": 16},
    "gemma": OF_GEMMA,
    "gemma2": OF_GEMMA,
    "gemma3_text": OF_GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
    # Four streams side by side: batch and tokens are not a layer's first two dimensions.
    "gemma3n_text": OF_GEMMA
    | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
    | {"laurel_rank": 8, "activation_sparsity_pattern": [0.0, 0.0]}
    | {"layer_types": ["sliding_attention", "full_attention"]},
    "phi": LLAMA_LIKE | {"num_key_value_heads": 4},
    "phi3": LLAMA_LIKE,
    "smollm3": LLAMA_LIKE,
    "opt": SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": INIT_STD},
    "gpt_neox": SIZES | {"intermediate_size": 96, "initializer_range": INIT_STD},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "initializer_range": INIT_STD},
    "falcon": SIZES | {"initializer_range": INIT_STD},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "initializer_range": INIT_STD},
}
HAVE_NO_LINEAR_MODULES = ("gpt2",)  # its projections are of a class of their own
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def built(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **FAMILIES[family], **SPECIAL)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_adapted_everywhere_and_learns(family: str, placement: str) -> None:
    if placement == "weights" and family in HAVE_NO_LINEAR_MODULES:
        pytest.skip("no linear modules")
    base = logits_of(attached(lambda: built(family)).unload())
    model = attached(lambda: built(family), placement=placement)
    kind = StreamLayer if placement == "residual_stream" else HashedLinear
    adapted = [name for name, module in model.named_modules() if isinstance(module, kind)]
    assert len(adapted) == 2 if placement == "residual_stream" else len(adapted) >= 8
    assert not any("lm_head" in name for name in adapted)
    assert torch.equal(logits_of(model), base)
    tokens = torch.arange(3, 19).view(2, 8)
    model.train().start_task("a")
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-3)
    losses = []
    for _ in range(10):
        loss = model.eval()(input_ids=tokens, labels=tokens).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1, losses
    model.end_task()
    logits = logits_of(model)
    assert (logits - base).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits_of(model), base)
    written = model.generate(input_ids=tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    again = model.generate(input_ids=tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(written, again)


def test_what_sees_images_is_left_alone() -> None:
    seeing = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    seeing |= {"image_size": 28, "patch_size": 14}
    config = {"text_config": OF_GEMMA, "vision_config": seeing, "mm_tokens_per_image": 4, "image_token_index": 127}
    base = Gemma3ForConditionalGeneration(AutoConfig.for_model("gemma3", **config))
    model = attached(lambda: base).train()
    adapted = [name for name, module in model.named_modules() if isinstance(module, StreamLayer)]
    assert adapted == [f"base_model.model.model.language_model.layers.{number}" for number in range(2)]
    with model.learning("a"):
        model(input_ids=random_tokens(), labels=random_tokens()).loss.backward()
    assert adapter_of(model).channels.any()


def test_a_model_with_an_encoder_learns_by_name(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = AutoConfig.for_model("bart", d_model=64, vocab_size=VOCABULARY, **sizes, **heads)
    model = get_peft_model(BartForConditionalGeneration(config), HimalayaConfig(task_type="SEQ_2_SEQ_LM", **SMALL))
    with model.learning("a"):
        model.train()(input_ids=random_tokens(1, 2, 8), labels=random_tokens(2, 2, 5)).loss.backward()
    assert "no prompt was seen in training" in caplog.text
    with pytest.raises(HimalayaError, match=r"^BartForConditionalGeneration has an encoder, or .*: name the task$"):
        model.infer_task(random_tokens())


@pytest.mark.parametrize(
    "targets",
    [
        {},
        {"placement": "weights"},
        {"placement": "weights", "target_modules": r".*\.q_proj"},
        {"target_modules": ["mlp"]},
    ],
)
def test_only_the_layers_that_are_named_are_adapted(targets: dict[str, Any]) -> None:
    model = attached(llama, **targets, layers_to_transform=[1])
    adapted = [name for name, module in model.named_modules() if isinstance(module, HimalayaLayer)]
    assert {name.split("layers.")[1][0] for name in adapted} == {"1"}


def test_a_module_outside_of_the_layers_is_adapted_by_its_name() -> None:
    config = {"placement": "weights", "target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1]}
    adapted = [name for name, module in attached(llama, **config).named_modules() if isinstance(module, HimalayaLayer)]
    assert [name.rpartition(".")[2] for name in adapted] == ["q_proj", "lm_head"]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_adapters_of_one_model_have_one_placement(placement: str) -> None:
    (other,) = {*PLACEMENTS} - {placement}
    model = attached(placement=placement)
    before = snapshot(model)
    for attach in (lambda config: model.add_adapter("other", config), partial(get_peft_model, model.base_model.model)):
        with pytest.raises(TypeError, match=rf"^placement='{other}': first unload"):
            attach(HimalayaConfig(task_type="CAUSAL_LM", placement=other, **SMALL))
    assert_same(model, before)


# What cannot be adapted ----------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A model without a list of decoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs))


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "no decoder layers": (Plain, {}, "layers.* not found in the base model"),
    "nothing of the name": (llama, {"target_modules": ["nanga_parbat"]}, "nanga_parbat.* not found in the base model"),
    "not linear": (
        llama,
        {"placement": "weights", "target_modules": ["q_proj", "mlp"]},
        r"^target 'model\.layers\.0\.mlp' is a LlamaMLP, not a linear module; placement='weights' adapts linear",
    ),
    "of no type that is adapted": (
        lambda: built("gpt2"),
        {"placement": "weights", "target_modules": ["c_attn"]},
        "c_attn' is a Conv1D, not a linear module",
    ),
    "other width": (llama, {"target_modules": ["up_proj"]}, "a target returns 128 features, others 64"),
    "two widths": (Plain, {"target_modules": ["first", "second"]}, "a target returns 5 features, others 8"),
    "other number of layers": (llama, {"layers": 30}, "was made for 30 adapted modules, this model has 2"),
}


@pytest.mark.parametrize(("family", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_model_that_does_not_fit_is_one_clear_line_and_stays_as_it_is(
    family: Callable[[], nn.Module], options: dict[str, Any], message: str
) -> None:
    model = family()
    before, modules = snapshot(model), [type(module) for module in model.modules()]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        get_peft_model(model, HimalayaConfig(**options))
    assert "\n" not in str(caught.value)
    assert_same(model, before)
    assert [type(module) for module in model.modules()] == modules
    assert not model._forward_pre_hooks


def test_a_config_belongs_to_its_adapter() -> None:
    """As PEFT does, what is found on attaching is written into the config."""
    config = HimalayaConfig(task_type="CAUSAL_LM")
    assert get_peft_model(llama(2), config).peft_config["default"] is config
    assert config.layers == 2
    with pytest.raises(ValueError, match=r"made for 2 adapted modules, this model has 3: .* a config of its own"):
        get_peft_model(llama(3), config)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_target_inside_of_a_checkpoint_gets_the_same_gradient(reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = attached(lambda: llama(4), target_modules=["mlp"]).train()
        model.start_task("a")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        for _ in range(2):
            model(input_ids=random_tokens(), labels=random_tokens()).loss.backward()
        gradients.append(adapter_of(model).atoms.grad)
        copy.deepcopy(model)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a fourth active atom": ({"active_atoms": 4}, "active_atoms=4 must be at most 3: 3, and atoms_per_task"),
    "more active than there are": ({"atoms_per_task": 2}, "active_atoms=3 must be at most 2"),
    "less than one task": ({"elastic_atoms": 23}, "atoms_per_task=24 must be at most 23: the slots, elastic_atoms=23"),
    "more than can be numbered": (
        {"elastic_atoms": 40_000},
        "elastic_atoms=40000 must be at most 32744: with",
    ),
    "no task": ({"max_tasks": 0}, "max_tasks=0 must be at least 1"),
    "no bound": ({"norm_bound": 0.0}, "norm_bound=0.0 must be above 0 and at most 2.0"),
    "a larger bound": ({"norm_bound": 2.5}, "norm_bound=2.5 must be above 0 and at most 2.0"),
    "a bound that is no number": ({"norm_bound": float("nan")}, "norm_bound=nan must be above 0"),
    "a cosine above 1": (
        {"similarity_threshold_tau": 1.1},
        "similarity_threshold_tau=1.1 must be above 0 and at most 1.0",
    ),
    "placement": ({"placement": "attention"}, "placement='attention' is not one of residual_stream, weights"),
    "bits": ({"quantisation_bits": 1}, "quantisation_bits=1 is not one of 2, 3, 4, 5, 6, 7, 8"),
    "fanout": ({"fanout": 3}, "fanout=3 is not one of 4, 8, 16"),
    "rank": ({"rank": 0}, "rank=0 must be at least 1"),
    "a rank of no factors": ({"rank": 2}, "rank=2 has no effect with placement='residual_stream'"),
    "a bound of no update": (
        {"placement": "weights", "norm_bound": 1.0},
        "norm_bound=1.0 has no effect with placement='weights'",
    ),
    "steps": ({"fisher_projection_steps": 0}, "fisher_projection_steps=0 must be at least 1"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD.keys())
def test_a_value_out_of_range_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        HimalayaConfig(**options)
    assert "\n" not in str(caught.value)
