"""Python source files: one row per function, as the text stands in the file, whatever Python version reads it."""

import ast
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.readers.types import Row

PLACEHOLDER = "f"  # stands where the function's name was


def read_python_functions(content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield ``name``, ``code`` (docstring removed, name replaced by ``f``), ``summary`` and ``file``. No options.

    Left out are special methods (``__init__``) and functions that are only a docstring, ``pass`` or ``...``.
    ``summary`` is the first line of the docstring, or empty.
    """
    try:
        text = content.decode("utf-8")
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes, or not UTF-8
        raise HimalayaError(f"cannot read Python source {name}: {error}") from error
    lines = [f"{line}\n" for line in text.split("\n")]  # counted as ast counts them, unlike splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            code = _code(node, lines)
            if code.startswith(f"def {PLACEHOLDER}("):
                summary = (ast.get_docstring(node) or "").partition("\n")[0].strip()
                yield {"name": node.name, "code": code, "summary": summary, "file": name}


def _code(node: ast.FunctionDef, lines: list[str]) -> str:
    """The function's text without decorators and docstring; empty if nothing is left of the body."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body or all(isinstance(statement, ast.Pass) for statement in body) or _is_ellipsis(body[0]):
        return ""
    if body[0].lineno == node.lineno:  # "def f(): return 1"
        return ""
    head = "".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
    rest = "".join(lines[body[0].lineno - 1 : node.end_lineno])
    return textwrap.dedent(head + rest).replace(f"def {node.name}(", f"def {PLACEHOLDER}(", 1).strip()


def _is_ellipsis(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
