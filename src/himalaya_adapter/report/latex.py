"""The tables of a comparison as LaTeX (booktabs), to input into a paper."""

import re
from collections.abc import Sequence

from himalaya_adapter.report.table import Table, Text

PREAMBLE = "% Needs \\usepackage{booktabs}, \\usepackage{graphicx} and a UTF-8 engine."
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "{}$&#%_"},
}
MATHS = {
    **{"−": "-", "±": r"\pm", "≤": r"\le", "≥": r"\ge", "×": r"\times", "‖": r"\|", "<": "<", ">": ">", "²": "^2"},
    **{"↑": r"\uparrow", "↓": r"\downarrow", "→": r"\to"},
    **{"Δ": r"\Delta", "Σ": r"\sum", "θ": r"\theta", "λ": r"\lambda", "τ": r"\tau"},
}
TYPOGRAPHY = {"–": "--", "…": r"\dots{}", "’": "'", "|": r"\textbar{}"}
# What else may stand in the braces is no formula of this project, and is printed as it is.
SUBSCRIPT = re.compile(r"([A-Za-z]+|[Σθ]\*?)_\{([A-Za-z0-9,<>≤≥=… ]+)\}")
WIDEST_UPRIGHT = 90  # characters of a row; wider tables are shrunk to the line


def document(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Every table as a float with a caption and the label ``tab:<topic>``."""
    lines = [PREAMBLE, *(f"% {' '.join(note.split())}" for note in notes)]
    for table in tables:
        lines += ["", *_table(table)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    rows = [[_cell(cell) for cell in row] for row in (table.header, *table.rows)]
    columns = "".join("l" if head.words else "r" for head in table.header)
    width = sum(max(len(cell.text + cell.small) for cell in of) for of in zip(table.header, *table.rows, strict=True))
    upright = width <= WIDEST_UPRIGHT
    return [
        r"\begin{table}",
        r"\centering",
        r"\small",
        f"\\caption{{{escape(table.title)}. {escape(table.legend)}}}",
        f"\\label{{tab:{table.topic.replace('_', '-')}}}",
        *([] if upright else [r"\resizebox{\linewidth}{!}{%"]),
        f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        _row(rows[0]),
        r"\midrule",
        *map(_row, rows[1:]),
        r"\bottomrule",
        r"\end{tabular}" + ("" if upright else "}"),
        r"\end{table}",
    ]


def _row(cells: Sequence[str]) -> str:
    row = " & ".join(cells) + r" \\"
    return "{}" + row if row.startswith("[") else row  # the end of the row before would take it for an option


def _cell(cell: Text) -> str:
    text = f"\\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)
    return f"{text} {{\\scriptsize {escape(cell.small)}}}" if cell.small else text


def escape(text: str) -> str:
    """``text`` as LaTeX: special characters literal, ``a_{i,j}`` a subscript, mathematical signs in maths."""
    parts, end = [], 0
    for found in SUBSCRIPT.finditer(text):
        base, index = found.groups()
        inside = "".join(f"{MATHS[c]} " if c in MATHS else TYPOGRAPHY.get(c, c) for c in index)
        letters = "".join(MATHS.get(c, c) for c in base)
        symbol = rf"\mathrm{{{base}}}" if base.isascii() and len(base) > 1 else letters
        parts += [_plain(text[end : found.start()]), f"${symbol}_{{{inside}}}$"]
        end = found.end()
    return "".join([*parts, _plain(text[end:])])


def _plain(text: str) -> str:
    signs = {**TYPOGRAPHY, **SPECIAL, **{sign: f"${command}$" for sign, command in MATHS.items()}, "\n": " "}
    return "".join(signs.get(character, character) for character in text)
