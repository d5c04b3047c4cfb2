"""What a person may call a run, whose name becomes a folder's and part of those of files, and a task."""

import unicodedata
from collections.abc import Collection

from himalaya_adapter.errors import HimalayaError, unknown_name

LONGEST = 200  # bytes; file systems take 255, and a run's folder holds files named after it
TASK_NAME_BYTES = 64  # of the place that an adapter has for it
RESERVED = ("comparison",)  # what commands write beside the runs


def check_name(name: str, what: str) -> None:
    """Refuse a name that is no folder's.

    Args:
        name: The name.
        what: Whose it is, for the message.

    Raises:
        HimalayaError: It is empty, too long, hidden, reserved, or holds a separator or a control character.
    """
    problem = _problem(name)
    if problem:
        shown = name if len(name) <= 60 else f"{name[:40]}…"
        raise HimalayaError(f"{what} '{shown}' is not the name of a folder: {problem}")


def _problem(name: str) -> str:
    if not name.strip() or name != name.strip():
        return "it is empty, or begins or ends with a space"
    if name.startswith("."):
        return "it begins with a dot; hidden names are kept for the program"
    if set(name) & set("/\\"):
        return "it holds a slash"
    if any(unicodedata.category(one)[0] == "C" for one in name):
        return "it holds a control character"
    if len(name.encode(errors="replace")) > LONGEST:
        return f"it is longer than {LONGEST} bytes"
    return f"'{name}' is kept for the program" if name.casefold() in RESERVED else ""


def normalised(name: str) -> str:
    """A task's name in the one form in which it is stored and compared: Unicode NFC.

    Raises:
        HimalayaError: It is empty, too long, or holds characters that cannot be seen.
    """
    if not isinstance(name, str):
        raise HimalayaError(f"a task's name is {name!r}; expected text")
    form = unicodedata.normalize("NFC", name)
    if not form or form != form.strip() or not form.isprintable() or len(form.encode()) > TASK_NAME_BYTES:
        raise HimalayaError(
            f"a task's name is {name!r}; expected 1 to {TASK_NAME_BYTES} bytes of text without line breaks, "
            "and no space at either end"
        )
    return form


def known_task(name: str, known: Collection[str], what: str = "task") -> str:
    """The one of the known tasks that a name means, in whichever Unicode form it is written.

    Args:
        name: What somebody has written.
        known: The tasks.
        what: What it should be, for the message.

    Raises:
        HimalayaError: None of them.
    """
    form = unicodedata.normalize("NFC", name)  # as all known ones are stored
    if form not in known:
        raise unknown_name(what, name, known)
    return form
