"""What the documentation says was measured is what the committed results say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

GENERATOR = Path(__file__).parents[1] / "docs" / "generate_results.py"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_results", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("section", ["demo", "rivals", "rivals_search"])
def test_the_tables_are_generated_from_the_committed_runs(section: str) -> None:
    module = generator()
    assert module.written(section) == module.generated(section), "run: python docs/generate_results.py"
