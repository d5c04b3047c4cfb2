"""A table as data, for the page, for Markdown and for LaTeX alike; and what stands over figures and under tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from himalaya_adapter.report.palette import Look

TEMPLATES = files("himalaya_adapter.report") / "templates"
LONG = 12  # rows from which on a table of tasks is folded


@dataclass(frozen=True)
class Text:
    """One cell of a table.

    Attributes:
        text: What it says.
        small: An interval, a deviation or a p-value beside it; in a page each has a line.
        bold: The best of a row, or a significant difference.
        warning: Something that is not as it should be.
        look: Of the method that it names or belongs to.
        words: Of the head of a column: the column holds words and not numbers.
    """

    text: str
    small: str = ""
    bold: bool = False
    warning: bool = False
    look: Look | None = None
    words: bool = False


Cells = Sequence[Any]  # of a line: each a `Text`, or a text that stands for a plain one


@dataclass(frozen=True)
class Table:
    """A table: ``topic`` names it in files, ``legend`` says how it is read; the first cell of a row is its name.

    A page shows a ``folded`` one only when it is asked to.
    """

    topic: str
    title: str
    header: Sequence[Text]
    rows: Sequence[Sequence[Text]]
    legend: str = ""
    folded: bool = False


def table(topic: str, header: Cells, rows: Sequence[Cells], *, also: str = "", folded: bool = False) -> Table:
    """A table whose title and legend are those of its topic; ``also`` is said after them."""
    title, legend = texts()[topic]
    head, *lines = ([cell if isinstance(cell, Text) else Text(cell) for cell in line] for line in (header, *rows))
    return Table(topic, title, head, lines, f"{legend} {also}".strip(), folded)


def words(*names: str) -> list[Text]:
    """The heads of columns of words."""
    return [Text(name, words=True) for name in names]


@cache
def texts() -> dict[str, tuple[str, str]]:
    """By topic the title of a figure or a table, and how it is read: ``templates/texts.yaml``."""
    return dict(yaml.safe_load(TEMPLATES.joinpath("texts.yaml").read_text(encoding="utf-8")))
