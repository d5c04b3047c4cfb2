"""What PEFT's own tests need: no hub, tiny models under the names that our cases use, and the allow-list."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import huggingface_hub.constants
import pytest
import tiny_families
import torch
from allow_list import ALLOWED

pytest.register_assert_rewrite("peft_tests")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "skipf: a misspelt mark in one of PEFT's test modules")


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Mark what the allow-list names: such a test must fail as foreseen, and every entry must name a test."""
    names = {_short(item): item for item in items if Path(__file__).parent in item.path.parents}
    for entry, expected in ALLOWED.items():
        matching = [item for name, item in names.items() if fnmatchcase(name, entry)]
        for item in matching:
            item.add_marker(pytest.mark.xfail(raises=expected.raises, reason=expected.why, strict=True))
        whole_class = not any("::" in argument for argument in config.args)
        collected = any(name.split(".")[0] == entry.split(".")[0] for name in names)
        if whole_class and collected and not matching:
            raise pytest.UsageError(f"the entry '{entry}' of the allow-list for PEFT's tests matches no test")


def _short(item: pytest.Item) -> str:
    """``Class.test:case``; brackets would mean something in a pattern."""
    return f"{item.parent.name if item.parent else ''}.{item.name.replace('[', ':').removesuffix(']')}"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in tiny_families.FAMILIES:
        tiny_families.save(family, folder / family)
    return folder


@pytest.fixture
def beside_the_models(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model ids such as ``llama`` are then folders beneath the working directory."""
    monkeypatch.chdir(models_folder)
