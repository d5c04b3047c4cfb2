"""What the documentation says was measured is what the committed results say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def generator(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("section", ["demo", "rivals", "rivals_search"])
def test_the_tables_are_generated_from_the_committed_runs(section: str) -> None:
    module = generator("generate_results")
    assert module.written(section) == module.generated(section), "run: python docs/generate_results.py"


def test_the_table_of_speeds_is_generated_from_the_committed_measurements() -> None:
    module = generator("generate_speed")
    assert module.written() == module.generated(), "run: python docs/generate_speed.py"
