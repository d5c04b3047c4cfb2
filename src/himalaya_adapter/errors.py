"""The one exception type that a user can cause, and the suggestion of a nearest name."""

import difflib
from collections.abc import Iterable


class HimalayaError(ValueError):
    """A mistake in the input, told in one line: what was wrong, where, and what would be right.

    The command line prints the message without a traceback and exits with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> HimalayaError:
    """Build the error for a name that is not known, suggesting the nearest one.

    Args:
        kind: What was looked up, for example ``"task"``.
        name: The name that was asked for.
        known: All names that would have been right.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    suggestion = f"; did you mean '{near[0]}'?" if near else ""
    return HimalayaError(f"unknown {kind} '{name}'{suggestion} (known: {', '.join(names) or 'none'})")
