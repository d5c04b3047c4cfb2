"""The signature that every reader has."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Row = dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A record that is no row.

    Args:
        reason: What such records are counted under.
        message: What is wrong with it, as the end of a sentence.
    """

    reason: str
    message: str


class Reader(Protocol):
    """Turns one file into rows.

    Args:
        content: The bytes of the file.
        name: Its name, for the row's fields and for error messages.
        options: The ``options`` of the YAML entry.

    Raises:
        HimalayaError: The content is not what this reader reads.
    """

    def __call__(self, content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row | BadRow]:
        """Yield the rows of one file."""
        ...
