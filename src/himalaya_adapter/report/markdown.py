"""The tables of a comparison as Markdown, to paste into a paper's notes or a pull request."""

import re
from collections.abc import Sequence

from himalaya_adapter.report.comparison import Comparison
from himalaya_adapter.report.table import Table, Text


def document(comparison: Comparison, tables: Sequence[Table]) -> str:
    """The tables of a comparison: a heading, the table, its legend; then what was not tested."""
    first = comparison.reference.first
    lines = [escape(f"# {first.metrics['stream']} on {first.metrics['backbone']}, {len(first.tasks)} tasks"), ""]
    for place, table in enumerate(tables):
        if place:  # the first one stands under the page's title
            lines += [f"## {escape(table.title)}", ""]
        lines += [*_table(table), "", escape(table.legend), ""]
    for note in comparison.notes:
        lines += [escape(note), ""]
    return "\n".join(lines)


def _table(table: Table) -> list[str]:
    lines = [[_cell(cell) for cell in table.header], ["---"] * len(table.header)]
    lines += [[_cell(cell) for cell in row] for row in table.rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(cell: Text) -> str:
    text = f"**{escape(cell.text)}**" if cell.bold else escape(cell.text)
    return f"{text} {escape(cell.small)}".strip()


def escape(text: str) -> str:
    """Keep a name from ending its cell, being read as HTML, and starting emphasis, code or a link."""
    signs = {"\\": r"\\", "|": r"\|", "&": "&amp;", "<": "&lt;", "*": r"\*", "`": r"\`", "](": r"]\(", "\n": " "}
    for sign, literal in signs.items():
        text = text.replace(sign, literal)
    return re.sub(r"(?<!\w)_+", lambda found: r"\_" * len(found[0]), text)
