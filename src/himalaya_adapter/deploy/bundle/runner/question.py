"""A question in the form that a task was learnt in."""

import string


def question(template: str, text: str) -> str:
    """A text in the place of the only column of a task's template; as it is if it is in that form already."""
    parts = list(string.Formatter().parse(template))
    columns = [column for _, column, _, _ in parts if column is not None]
    if len({*columns}) != 1:
        return text
    before, after = parts[0][0], parts[-1][0] if parts[-1][1] is None else ""
    asked = text.rstrip()
    if (before or after) and asked.startswith(before) and asked.endswith(after.rstrip()):
        return text
    return template.format_map({columns[0]: text.strip()}).rstrip()
