"""PEFT's tests on models that bitsandbytes has quantised, on HIMALAYA."""

from typing import Any

import pytest
from peft_injection import Table, with_our_cases
from peft_source import import_tests

from himalaya_adapter import HimalayaConfig

pytestmark = pytest.mark.usefixtures("beside_the_models")
peft_tests = import_tests("test_quantization")


def loader(bits: int) -> Any:
    """PEFT's loader of a quantised OPT, told to load our tiny one."""
    of_peft = {8: peft_tests.Bnb8bitLoader, 4: peft_tests.Bnb4bitLoader}[bits]()
    of_peft.model_id = "opt"
    of_peft.expected_layer_count = 4  # q_proj and v_proj of two layers
    return pytest.param(of_peft, id=f"{bits}-bit")


TABLES = {
    "QUANTIZATION_BACKENDS": Table("quant", [loader(8), loader(4)]),
    "TEST_CASES": Table(
        "config_cls, config_kwargs",
        [pytest.param(HimalayaConfig, {"placement": "weights", "target_modules": ["q_proj", "v_proj"]}, id="weights")],
    ),
}

TestQuantization = with_our_cases(peft_tests, "TestQuantization", TABLES)
