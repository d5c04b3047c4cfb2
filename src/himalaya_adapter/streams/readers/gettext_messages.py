"""Translation catalogues (.po): one row per translated one-line message."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import polib

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.readers.types import Row

OPTIONS = ("english",)
IN_COMMENT = re.compile(r'Default:\s*"(.*)"', re.DOTALL)
IDENTIFIER = re.compile(r"\w+_\w+")  # a message id such as "label_new_user", which is no English


def read_gettext_messages(content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield ``message`` (English), ``translation`` and ``language`` (the folder above LC_MESSAGES).

    Left out are obsolete, fuzzy and plural entries, and messages of several lines.

    Args:
        content: A .po file.
        name: Its path in the archive.
        options: ``english: comment`` for catalogues whose message ids are identifiers: the English text is then taken
            from the translators' comment ``Default: "…"``, and identifiers without one are left out.
    """
    if options.get("english", "message") not in ("message", "comment"):
        raise HimalayaError(f"option 'english' for {name} is {options['english']!r}; expected 'message' or 'comment'")
    message_of = _from_comment if options.get("english") == "comment" else _from_id
    place = re.search(r"([^/]+)/LC_MESSAGES/", name)
    try:
        entries = polib.pofile(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise HimalayaError(f"cannot read translations {name}: {error}") from error
    for entry in entries:
        usable = entry.msgstr.strip() and not (entry.obsolete or entry.fuzzy or entry.msgid_plural)
        message = message_of(entry)
        if usable and message and "\n" not in message + entry.msgstr:
            yield {"message": message, "translation": entry.msgstr, "language": place[1] if place else ""}


def _from_id(entry: polib.POEntry) -> str:
    return str(entry.msgid)


def _from_comment(entry: polib.POEntry) -> str:
    found = IN_COMMENT.search(entry.comment)
    if found:
        return " ".join(found[1].replace('\\"', '"').split())
    return "" if IDENTIFIER.fullmatch(entry.msgid) else str(entry.msgid)
