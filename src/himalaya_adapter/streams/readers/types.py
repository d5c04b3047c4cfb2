"""The signature that every reader has."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

Row = dict[str, Any]


class Reader(Protocol):
    """Turns one file into rows.

    Args:
        content: The bytes of the file.
        name: Its name, for the row's fields and for error messages.
        options: The ``options`` of the YAML entry.

    Raises:
        HimalayaError: The content is not what this reader reads.
    """

    def __call__(self, content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row]:
        """Yield the rows of one file."""
        ...
