"""Python source files: one row per function, as the text stands in the file, whatever Python version reads it."""

import ast
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.readers.types import Row

OPTIONS = ("documented",)
PLACEHOLDER = "f"  # stands where the function's name was
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")  # fields of nodes that hold statements, in ast's order


def read_python_functions(content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield ``name``, ``code`` (docstring removed, name replaced by ``f``), ``signature``, ``body``, ``summary``,
    ``file`` and ``package`` (the first two folders of the file, ``sympy.geometry``).

    Left out are special methods (``__init__``) and functions that are only a docstring, ``pass`` or ``...``.
    ``summary`` is the first line of the docstring, or empty. ``body`` is dedented.

    Args:
        content: Python source.
        name: Its path in the archive.
        options: ``documented``: true for the functions with a docstring only, false for those without one.
    """
    documented = options.get("documented")
    if documented not in (None, True, False):
        raise HimalayaError(f"option 'documented' for {name} is {documented!r}; expected true or false")
    try:
        text = content.decode("utf-8")
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes, or not UTF-8
        raise HimalayaError(f"cannot read Python source {name}: {error}") from error
    lines = text.split("\n")  # counted as ast counts them, unlike splitlines()
    for node in _functions(tree):
        if not node.name.startswith("__"):
            signature, body = _parts(node, lines)
            summary = (ast.get_docstring(node) or "").partition("\n")[0].strip()
            if signature.startswith(f"def {node.name}(") and documented in (None, bool(summary)):
                yield {
                    "name": node.name,
                    "code": f"{signature}\n{body}".replace(f"def {node.name}(", f"def {PLACEHOLDER}(", 1).strip(),
                    "signature": signature,
                    "body": textwrap.dedent(body).strip(),
                    "summary": summary,
                    "file": name,
                    "package": ".".join(name.split("/")[:2]),
                }


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """The functions of a file in the order of `ast.walk`, which looks into every expression on its way."""
    level: list[ast.AST] = [tree]
    while level:
        yield from (node for node in level if isinstance(node, ast.FunctionDef))
        level = [inner for node in level for field in BLOCKS for inner in getattr(node, field, ())]


def _parts(node: ast.FunctionDef, lines: list[str]) -> tuple[str, str]:
    """The function's text without decorators and docstring, as signature and body; empty if there is no body."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body or all(isinstance(statement, ast.Pass) for statement in body) or _is_ellipsis(body[0]):
        return "", ""
    if body[0].lineno == node.lineno:  # "def f(): return 1"
        return "", ""
    head = lines[node.lineno - 1 : node.body[0].lineno - 1]
    rest = lines[body[0].lineno - 1 : node.end_lineno]
    text = textwrap.dedent("\n".join(head + rest)).split("\n")
    return "\n".join(text[: len(head)]), "\n".join(text[len(head) :])


def _is_ellipsis(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
