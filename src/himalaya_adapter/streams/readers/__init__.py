"""Readers: each turns the bytes of one file into rows (field name to value)."""

from himalaya_adapter.streams.readers.assistant_sentences import OPTIONS as ASSISTANT_OPTIONS
from himalaya_adapter.streams.readers.assistant_sentences import read_assistant_sentences
from himalaya_adapter.streams.readers.gettext_messages import read_gettext_messages
from himalaya_adapter.streams.readers.python_functions import read_python_functions
from himalaya_adapter.streams.readers.table import read_table
from himalaya_adapter.streams.readers.types import Reader

READERS: dict[str, Reader] = {
    "assistant_sentences": read_assistant_sentences,
    "gettext_messages": read_gettext_messages,
    "python_functions": read_python_functions,
    "table": read_table,
}
# The keys that `options` may have, for the readers that take options.
READER_OPTIONS: dict[str, tuple[str, ...]] = {"assistant_sentences": ASSISTANT_OPTIONS}

__all__ = ["READERS", "READER_OPTIONS", "Reader"]
