"""Counts the method's lines of code: no blank lines, comments or docstrings. The source allows 400.

Run it with ``python benchmarks/code_lines.py``.
"""

import ast
import tokenize
from pathlib import Path

import himalaya_adapter.methods.himalaya

ALLOWED = 400
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


def code_lines(path: Path) -> int:
    """Lines of a Python file that hold code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type not in LAYOUT and token.string:
                lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> None:
    """Print the count of each file and their sum."""
    folder = Path(himalaya_adapter.methods.himalaya.__file__).parent
    counts = {path.name: code_lines(path) for path in sorted(folder.glob("*.py"))}
    for name, count in counts.items():
        print(f"{count:5d} {name}")
    print(f"{sum(counts.values()):5d} in all; the source allows {ALLOWED}")


if __name__ == "__main__":
    main()
