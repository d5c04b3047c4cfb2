"""A table as data, for the page, for Markdown and for LaTeX alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from himalaya_adapter.report.method_groups import MethodGroup
from himalaya_adapter.report.palette import Look
from himalaya_adapter.report.texts import text_of

LONG = 12  # rows from which on a table of tasks is folded


@dataclass(frozen=True)
class Text:
    """One cell of a table.

    Attributes:
        text: What it says.
        small: An interval or a deviation beside it.
        p: A p-value beside it.
        bold: The best of a row, or a significant difference.
        clear: The best, and its interval overlaps no other's.
        warning: Something that is not as it should be.
        look: Of the method that it names or belongs to.
        words: Words and not a number.
    """

    text: str
    small: str = ""
    p: str = ""
    bold: bool = False
    clear: bool = False
    warning: bool = False
    look: Look | None = None
    words: bool = False


@dataclass(frozen=True)
class Table:
    """A table: ``topic`` names it in files, ``legend`` says how it is read; the first cell of a row is its name.

    A page shows a ``folded`` one only when it is asked to.
    """

    topic: str
    title: str
    header: tuple[Text, ...]
    rows: tuple[tuple[Text, ...], ...]
    legend: str = ""
    folded: bool = False


def table(topic: str, header: tuple[Text, ...], rows: Sequence[tuple[Text, ...]], *, folded: bool = False) -> Table:
    """A table whose title and legend are those of its topic."""
    title, legend = text_of(topic)
    return Table(topic, title, header, tuple(rows), legend, folded)


def words(*texts: str) -> tuple[Text, ...]:
    """Cells of words."""
    return tuple(Text(text, words=True) for text in texts)


def numbers(*texts: str) -> tuple[Text, ...]:
    """Cells of numbers."""
    return tuple(Text(text) for text in texts)


def whiskers_legend(groups: Sequence[MethodGroup]) -> str:
    """What stands beside the numbers of these methods."""
    legend = "± is the standard deviation over seeds; of norms the largest is shown. " if has_seeds(groups) else ""
    if any(len(group.runs) == 1 for group in groups):
        legend += "Brackets are 95 % intervals over test items. "
    return legend


def has_seeds(groups: Sequence[MethodGroup]) -> bool:
    """Whether a method has several seeds."""
    return any(len(group.runs) > 1 for group in groups)
