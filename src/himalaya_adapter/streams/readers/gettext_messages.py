"""Translation catalogues (.po): one row per translated one-line message."""

import re
from collections.abc import Iterator
from typing import Literal

import polib

from himalaya_adapter.streams.readers.types import Row

IN_COMMENT = re.compile(r'Default:\s*"(.*)"', re.DOTALL)
IDENTIFIER = re.compile(r"\w+_\w+")  # a message id such as "label_new_user", which is no English


def read_gettext_messages(
    content: bytes, name: str, *, english: Literal["message", "comment"] = "message"
) -> Iterator[Row]:
    """Yield ``message`` (English), ``translation`` and ``language`` (the folder above LC_MESSAGES).

    Left out are obsolete, fuzzy and plural entries, and messages of several lines.

    Args:
        content: A .po file.
        name: Its path in the archive.
        english: ``comment`` for catalogues whose message ids are identifiers: the English text is then taken from the
            translators' comment ``Default: "…"``, and identifiers without one are left out.
    """
    place = re.search(r"([^/]+)/LC_MESSAGES/", name)
    for entry in polib.pofile(content.decode()):
        usable = entry.msgstr.strip() and not (entry.obsolete or entry.fuzzy or entry.msgid_plural)
        message = entry.msgid if english == "message" else _from_comment(entry)
        if usable and message and "\n" not in message + entry.msgstr:
            yield {"message": message, "translation": entry.msgstr, "language": place[1] if place else ""}


def _from_comment(entry: polib.POEntry) -> str:
    found = IN_COMMENT.search(entry.comment)
    if found:
        return " ".join(found[1].replace('\\"', '"').split())
    return "" if IDENTIFIER.fullmatch(entry.msgid) else entry.msgid
