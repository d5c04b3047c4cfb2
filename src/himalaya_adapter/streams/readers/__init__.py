"""Readers: each turns the bytes of one file into rows (field name to value)."""

from himalaya_adapter.streams.readers.assistant_sentences import OPTIONS as ASSISTANT_OPTIONS
from himalaya_adapter.streams.readers.assistant_sentences import read_assistant_sentences
from himalaya_adapter.streams.readers.chat_samples import OPTIONS as CHAT_OPTIONS
from himalaya_adapter.streams.readers.chat_samples import read_chat_samples
from himalaya_adapter.streams.readers.gettext_messages import OPTIONS as GETTEXT_OPTIONS
from himalaya_adapter.streams.readers.gettext_messages import read_gettext_messages
from himalaya_adapter.streams.readers.matches import OPTIONS as MATCHES_OPTIONS
from himalaya_adapter.streams.readers.matches import read_matches
from himalaya_adapter.streams.readers.python_functions import OPTIONS as PYTHON_OPTIONS
from himalaya_adapter.streams.readers.python_functions import read_python_functions
from himalaya_adapter.streams.readers.table import read_table
from himalaya_adapter.streams.readers.types import Reader

READERS: dict[str, Reader] = {
    "assistant_sentences": read_assistant_sentences,
    "chat_samples": read_chat_samples,
    "gettext_messages": read_gettext_messages,
    "matches": read_matches,
    "python_functions": read_python_functions,
    "table": read_table,
}
# The keys that `options` may have, for the readers that take options.
READER_OPTIONS: dict[str, tuple[str, ...]] = {
    "assistant_sentences": ASSISTANT_OPTIONS,
    "chat_samples": CHAT_OPTIONS,
    "gettext_messages": GETTEXT_OPTIONS,
    "matches": MATCHES_OPTIONS,
    "python_functions": PYTHON_OPTIONS,
}

__all__ = ["READERS", "READER_OPTIONS", "Reader"]
