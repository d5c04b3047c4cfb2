"""PEFT's tests of decoder models, on HIMALAYA."""

from typing import Any

import pytest
from peft import get_peft_model
from peft_injection import Table, with_our_cases
from peft_source import import_tests
from transformers import AutoModelForCausalLM

from himalaya_adapter import HimalayaConfig

pytestmark = pytest.mark.usefixtures("beside_the_models")
peft_tests = import_tests("test_decoder_models")


def case(name: str, model: str, slow: bool = False, **options: Any) -> Any:
    marks = [pytest.mark.slow] * slow
    return pytest.param(
        model, HimalayaConfig, {"task_type": "CAUSAL_LM", **options}, id=f"{model}-{name}", marks=marks
    )


TABLES = {
    "PEFT_DECODER_MODELS_TO_TEST": None,
    "ALL_CONFIGS": Table(
        "model_id, config_cls, config_kwargs",
        [
            case("stream", "llama"),
            case("oblong-weights", "qwen2", placement="weights", target_modules=["k_proj", "gate_proj"]),
            # The same placements on other models: `make test-docs` runs these.
            case("square-weights", "llama", slow=True, placement="weights", target_modules=["q_proj", "o_proj"]),
            case("stream", "gemma3_text", slow=True),
            case("stream", "gpt2", slow=True, target_modules=["mlp"]),
            case("weights", "opt", slow=True, placement="weights", target_modules=["q_proj", "v_proj", "fc2"]),
        ],
    ),
    "test_set_requires_grad_prompt_learning_raises": None,
}

TestDecoderModels = with_our_cases(peft_tests, "TestDecoderModels", TABLES)


def test_gpt2_layers_that_are_not_linear_modules_are_refused() -> None:
    config = HimalayaConfig(task_type="CAUSAL_LM", placement="weights", target_modules=["c_attn"])
    with pytest.raises(TypeError, match=r"c_attn' is a Conv1D, not a linear module.*name those in target_modules"):
        get_peft_model(AutoModelForCausalLM.from_pretrained("gpt2"), config)
