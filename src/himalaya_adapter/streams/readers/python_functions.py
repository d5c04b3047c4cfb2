"""Python source files: one row per function, as the text stands in the file, whatever Python version reads it."""

import ast
import textwrap
from collections import deque
from collections.abc import Iterator

from himalaya_adapter.experiments.schema import Switch
from himalaya_adapter.streams.readers.types import Row

PLACEHOLDER = "f"  # stands where the function's name was
STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


def read_python_functions(content: bytes, name: str, *, documented: Switch | None = None) -> Iterator[Row]:
    """Yield ``name``, ``code`` (docstring removed, name replaced by ``f``), ``signature``, ``body``, ``summary``,
    ``file`` and ``package`` (the first two folders of the file, ``sympy.geometry``).

    Left out are special methods (``__init__``) and functions that are only a docstring, ``pass`` or ``...``.
    ``summary`` is the first line of the docstring, or empty. ``body`` is dedented.

    Args:
        content: Python source.
        name: Its path in the archive.
        documented: True for the functions with a docstring only, false for those without one.
    """
    text = content.decode()
    lines = text.split("\n")  # counted as ast counts them, unlike splitlines()
    for node in _statements(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
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


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """What holds statements, in the order of ``ast.walk``, which would look into all expressions, too."""
    found: deque[ast.AST] = deque([tree])
    while found:
        yield (node := found.popleft())
        found.extend(one for one in ast.iter_child_nodes(node) if isinstance(one, STATEMENTS))


def _parts(node: ast.FunctionDef, lines: list[str]) -> tuple[str, str]:
    """The function's text without decorators and docstring, as signature and body; empty if there is no body."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body or all(isinstance(statement, ast.Pass) for statement in body):
        return "", ""
    is_ellipsis = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    if is_ellipsis or body[0].lineno == node.lineno:  # "def f(): return 1"
        return "", ""
    head = lines[node.lineno - 1 : node.body[0].lineno - 1]
    rest = lines[body[0].lineno - 1 : node.end_lineno]
    text = textwrap.dedent("\n".join(head + rest)).split("\n")
    return "\n".join(text[: len(head)]), "\n".join(text[len(head) :])
