"""Counts lines of code: no blank lines, comments or docstrings. The original plan allows the method 400.

Run it with ``python benchmarks/code_lines.py``.
"""

import ast
import tokenize
from pathlib import Path

import himalaya_adapter

# Of methods/himalaya, what the default settings never run: the LoRA placement, and evictions.
BESIDE = ("weights.py", "consolidation.py")
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


def code_lines(path: Path) -> int:
    """Lines of a Python file that hold code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        # A string that is a statement: the docstring of a module, class or function, or of an attribute (PEP 257).
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: set[int] = set()
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type not in LAYOUT and token.string:
                lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> None:
    """Print the count of each file of the method, and of the folders."""
    source = Path(himalaya_adapter.__file__).parent
    methods = source / "methods"
    counts = {path.name: code_lines(path) for path in sorted((methods / "himalaya").glob("*.py"))}
    for name, count in counts.items():
        print(f"{count:6,} {name}")
    print(f"{sum(counts.values()):6,} methods/himalaya")
    print(f"{sum(count for name, count in counts.items() if name not in BESIDE):6,} of them for the default settings")
    for folder in (methods / "task_inference", methods / "himalaya_strict", methods, source):
        print(f"{sum(map(code_lines, folder.rglob('*.py'))):6,} {folder.relative_to(source.parent)}")


if __name__ == "__main__":
    main()
