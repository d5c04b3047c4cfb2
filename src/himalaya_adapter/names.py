"""What a person may call a run: names become folders, and parts of the names of files."""

import unicodedata

from himalaya_adapter.errors import HimalayaError

LONGEST = 200  # bytes; file systems take 255, and a run's folder holds files named after it
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
