"""PEFT's test classes, with HIMALAYA in the place of PEFT's own methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest


@dataclass(frozen=True)
class Table:
    """Cases of a parametrised test: the names of the arguments, and `pytest.param(..., id=...)` for each case."""

    arguments: str
    cases: Sequence[Any]


def with_our_cases(module: ModuleType, class_name: str, tables: Mapping[str, Table | None]) -> type:
    """One of PEFT's test classes, left with those of its tests that run on our cases.

    Args:
        module: PEFT's test module.
        class_name: Its test class.
        tables: Our cases, by the name of the module's table whose place they take (`None`: another table of ours has
            its arguments), or by the name of a test that has a table of its own (`None`: not for us).
    """
    original = getattr(module, class_name)
    shared = {id(getattr(module, name)): table for name, table in tables.items() if hasattr(module, name)}
    hidden: dict[str, Any] = {}
    for name, test in vars(original).items():
        if not name.startswith("test_"):
            continue
        marks = [mark for mark in getattr(test, "pytestmark", []) if not _is_replaced(mark, shared)]
        ours = [shared[id(mark.args[1])] for mark in getattr(test, "pytestmark", []) if _is_replaced(mark, shared)]
        if name in tables:
            marks, ours = [], [tables[name]]
        found = [table for table in ours if table is not None]
        if not found:
            hidden[name] = None  # a test of a method of PEFT's own
        else:
            test.pytestmark = marks + [pytest.mark.parametrize(table.arguments, table.cases).mark for table in found]
    return type(class_name, (original,), hidden)


def _is_replaced(mark: pytest.Mark, shared: Mapping[int, Table | None]) -> bool:
    return mark.name == "parametrize" and id(mark.args[1]) in shared
