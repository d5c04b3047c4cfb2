"""Chat samples: JSON lines of messages with an ideal answer, as evaluation suites keep them."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.readers.types import Row

OPTIONS = ("question", "answer")
ANYTHING = r"(?P<{}>.*)"


def read_chat_samples(content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield ``question`` (the last message) and ``answer`` (the ideal, or the first of several).

    Args:
        content: One object a line, ``{"input": [{"content": …}, …], "ideal": …}``.
        name: Its path in the archive.
        options: ``question`` and ``answer``: regular expressions that take the text apart. A sample that one of them
            does not match as a whole is left out; their named groups become fields.
    """
    expressions = [_compiled(part, options.get(part, ANYTHING.format(part)), name) for part in OPTIONS]
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line.decode("utf-8"))
            ideal = sample["ideal"]
            texts = (sample["input"][-1]["content"], ideal if isinstance(ideal, str) else ideal[0])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise HimalayaError(f"line {number} of {name} is not a chat sample: {error}") from error
        found = [expression.fullmatch(text) for expression, text in zip(expressions, texts, strict=True)]
        if all(found):
            yield {field: value for match in found if match for field, value in match.groupdict(default="").items()}


def _compiled(part: str, expression: Any, name: str) -> re.Pattern[str]:
    try:
        return re.compile(expression, re.DOTALL)
    except (re.error, TypeError) as error:
        raise HimalayaError(f"option '{part}' for {name} is {expression!r}: {error}") from error
