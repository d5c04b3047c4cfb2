"""Any text file: one row per place where a regular expression matches."""

import re
from collections.abc import Iterator

from himalaya_adapter.streams.readers.types import Row


def read_matches(
    content: bytes, name: str, *, pattern: re.Pattern[str], continuation: str | None = None
) -> Iterator[Row]:
    """Yield one field per named group of the pattern, and ``file``; a group without a match is empty text.

    Args:
        content: UTF-8 text.
        name: Its path in the archive.
        pattern: A regular expression with named groups, in which ``^`` and ``$`` are the ends of a line.
        continuation: Text, such as a backslash, at whose end of a line the next line is joined on first.
    """
    text = content.decode()
    if continuation is not None:
        text = re.sub(rf"\s*{re.escape(continuation)}[ \t]*\n\s*", " ", text)
    for match in re.finditer(pattern.pattern, text, re.MULTILINE):
        yield {**match.groupdict(default=""), "file": name}
