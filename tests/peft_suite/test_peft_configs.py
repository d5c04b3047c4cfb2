"""PEFT's tests of configs, and of the refusal to inject a method with shared state, on HIMALAYA."""

from pathlib import Path

import pytest
from peft import LoraConfig
from peft_injection import Table, with_our_cases
from peft_source import import_tests

from himalaya_adapter import HimalayaConfig

config_tests = import_tests("test_config")
low_level_tests = import_tests("test_low_level_api")
# PEFT reads a LoRA config of the hub there; ours lies in the working directory.
config_tests.PEFT_MODELS_TO_TEST[:] = [("saved-lora", "main")]


@pytest.fixture(autouse=True)
def saved_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LoraConfig().save_pretrained(str(tmp_path / "saved-lora"))
    monkeypatch.chdir(tmp_path)


CONFIGS = Table(
    "config_class, mandatory_kwargs",
    [
        pytest.param(HimalayaConfig, {}, id="default"),
        pytest.param(HimalayaConfig, {"placement": "weights", "target_modules": "lin0"}, id="weights"),
    ],
)
CONFIG_TABLES = {
    "ALL_CONFIG_CLASSES": CONFIGS,
    "LAYER_INDEXING_CONFIG_CLASSES": CONFIGS,
    "test_save_pretrained_with_target_modules": Table("config_class", [pytest.param(HimalayaConfig, id="default")]),
}
INJECTED = Table("config_cls, config_kwargs", [pytest.param(HimalayaConfig, {"placement": "weights"}, id="weights")])
LOW_LEVEL_TABLES = {"test_inject_adapter_in_model_rejects_shared_state_tuners": INJECTED}

TestPeftConfig = with_our_cases(config_tests, "TestPeftConfig", CONFIG_TABLES)
TestLowLevelFunctional = with_our_cases(low_level_tests, "TestLowLevelFunctional", LOW_LEVEL_TABLES)
