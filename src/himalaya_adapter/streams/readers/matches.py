"""Any text file: one row per place where a regular expression matches."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.readers.types import Row

OPTIONS = ("pattern", "continuation")


def read_matches(content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield one field per named group of the pattern, and ``file``; a group without a match is empty text.

    Args:
        content: UTF-8 text.
        name: Its path in the archive.
        options: ``pattern``: a regular expression with named groups, in which ``^`` and ``$`` are the ends of a line;
            ``continuation``: text, such as a backslash, at whose end of a line the next line is joined on first.
    """
    pattern, continuation = options.get("pattern"), options.get("continuation")
    if not isinstance(pattern, str):
        raise HimalayaError(f"option 'pattern' for {name} is {pattern!r}; expected a regular expression")
    try:
        expression = re.compile(pattern, re.MULTILINE)
        text = content.decode("utf-8")
    except (re.error, UnicodeDecodeError) as error:
        raise HimalayaError(f"cannot search {name} for {pattern!r}: {error}") from error
    if not expression.groupindex:
        raise HimalayaError(f"option 'pattern' for {name} is {pattern!r}; it names no group, as in '(?P<word>\\w+)'")
    if continuation is not None:
        text = re.sub(rf"\s*{re.escape(str(continuation))}[ \t]*\n\s*", " ", text)
    for match in expression.finditer(text):
        yield {**match.groupdict(default=""), "file": name}
