"""Readers: each turns the bytes of one file into rows (field name to value)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.streams.readers.assistant_sentences import read_assistant_sentences
from himalaya_adapter.streams.readers.chat_samples import read_chat_samples
from himalaya_adapter.streams.readers.gettext_messages import read_gettext_messages
from himalaya_adapter.streams.readers.matches import read_matches
from himalaya_adapter.streams.readers.python_functions import read_python_functions
from himalaya_adapter.streams.readers.table import read_table
from himalaya_adapter.streams.readers.types import BadRow, Row

# By the name behind `read_`. Each takes the bytes of a file, its name, and as keywords the ``options`` of the YAML.
READERS: dict[str, Callable[..., Iterator[Row | BadRow]]] = {
    read.__name__.removeprefix("read_"): validate_call(config=ConfigDict(coerce_numbers_to_str=True))(read)
    for read in (
        read_assistant_sentences,
        read_chat_samples,
        read_gettext_messages,
        read_matches,
        read_python_functions,
        read_table,
    )
}


def read_file(
    content: bytes, name: str, reader: str = "table", options: Mapping[str, Any] | None = None
) -> Iterator[Row | BadRow]:
    """Yield the rows of one file.

    Args:
        content: The bytes of the file.
        name: Its name, for the row's fields and for error messages.
        reader: One of `READERS`.
        options: Of the YAML entry.

    Raises:
        HimalayaError: The content is not what this reader reads, or it has no such option, or none of such a value.
    """
    try:
        yield from READERS[reader](content, name, **(options or {}))
    except ValidationError as error:
        first = error.errors()[0]
        raise HimalayaError(f"option '{first['loc'][0]}' for {name}: {one_line(first['msg'])}") from error
    except (HimalayaError, MemoryError):
        raise
    except Exception as error:  # parsers raise errors of their own
        kind = "" if isinstance(error, ValueError | OSError | SyntaxError) else f"{type(error).__name__} "
        raise HimalayaError(f"cannot read {name} as {reader}: {kind}{one_line(error)}") from error


__all__ = ["READERS", "BadRow", "Row", "read_file"]
