"""Translation catalogues (.po): one row per translated one-line message."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import polib

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.readers.types import Row


def read_gettext_messages(content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield ``message`` (English), ``translation`` and ``language`` (the folder above LC_MESSAGES). No options.

    Left out are obsolete, fuzzy and plural entries, and messages of several lines.
    """
    place = re.search(r"([^/]+)/LC_MESSAGES/", name)
    try:
        entries = polib.pofile(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise HimalayaError(f"cannot read translations {name}: {error}") from error
    for entry in entries:
        usable = entry.msgstr and not (entry.obsolete or entry.fuzzy or entry.msgid_plural)
        if usable and "\n" not in entry.msgid + entry.msgstr:
            yield {"message": entry.msgid, "translation": entry.msgstr, "language": place[1] if place else ""}
