"""PEFT's tests of custom models, several adapters and ``requires_grad``, on HIMALAYA."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from peft_injection import Table, with_our_cases
from peft_source import import_tests

from himalaya_adapter import HimalayaConfig

peft_tests = import_tests("test_custom_models")


def case(name: str, model: str, **options: Any) -> Any:
    return pytest.param(name, model, HimalayaConfig, {"placement": "weights", **options}, id=name)


def two_adapters(name: str, first: str, second: str) -> Any:
    options = {"placement": "weights", "init_weights": False}
    configs = [options | {"target_modules": [module], "seed": seed} for seed, module in enumerate((first, second))]
    return pytest.param(name, "himalaya", HimalayaConfig, *configs, id=name)


ONE_TARGET = HimalayaConfig(placement="weights", target_modules=["lin0"], init_weights=False)
TABLES = {
    "TEST_CASES": Table(
        "test_name, model_id, config_cls, config_kwargs",
        [
            case("one-name", "MLP", target_modules="lin0"),
            case("two-widths", "MLP", target_modules=["lin0", "lin1"]),
            case("modules-to-save", "MLP", target_modules=["lin0"], modules_to_save=["lin1"]),
            case("residual-stream", "MLP", target_modules=["lin0"], placement="residual_stream"),
            case("layer-norm", "MLP_LayerNorm", target_modules=["lin0"], modules_to_save=["layernorm0"]),
            case("embedding", "EmbConv1D", target_modules=["lin0"], modules_to_save=["emb"]),
        ],
    ),
    "ALL_PEFT_CONFIG_CLASSES": Table("config_cls", [pytest.param(HimalayaConfig, id="himalaya")]),
    "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": Table(
        "test_name, tuner_method, config_cls, config_kwargs_1, config_kwargs_2",
        [two_adapters("same-target", "lin0", "lin0"), two_adapters("different-targets", "lin0", "lin1")],
    ),
    "test_adapter_name_makes_no_difference": Table("config0", [pytest.param(ONE_TARGET, id="himalaya")]),
}

TestPeftCustomModel = with_our_cases(peft_tests, "TestPeftCustomModel", TABLES)
TestMultipleActiveAdapters = with_our_cases(peft_tests, "TestMultipleActiveAdapters", TABLES)
TestRequiresGrad = with_our_cases(peft_tests, "TestRequiresGrad", TABLES)


class TestPeftFsdpStateDict(with_our_cases(peft_tests, "TestPeftFsdpStateDict", TABLES)):  # type: ignore[misc]
    """PEFT's class; wrapped models are freed while their process group is there."""

    @pytest.fixture(autouse=True, scope="class")
    def collected(self, fsdp_process_group: None) -> Iterator[None]:
        # They are cycles: left to Python's collector they would outlive the group, and may take the process with them.
        yield
        gc.collect()
