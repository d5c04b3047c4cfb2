"""Chat samples: JSON lines of messages with an ideal answer, as evaluation suites keep them."""

import re
from collections.abc import Iterator

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.readers.table import json_lines
from himalaya_adapter.streams.readers.types import Row

QUESTION, ANSWER = re.compile("(?P<question>.*)"), re.compile("(?P<answer>.*)")


def read_chat_samples(
    content: bytes, name: str, *, question: re.Pattern[str] = QUESTION, answer: re.Pattern[str] = ANSWER
) -> Iterator[Row]:
    """Yield ``question`` (the last message) and ``answer`` (the ideal, or the first of several).

    Args:
        content: One object a line, ``{"input": [{"content": …}, …], "ideal": …}``.
        name: Its path in the archive.
        question: A regular expression that takes the text apart. A sample that it does not match as a whole is left
            out; its named groups become fields.
        answer: The same for the answer.
    """
    for number, sample in enumerate(json_lines(content.decode(), name), start=1):
        try:
            ideal = sample["ideal"]
            texts = (sample["input"][-1]["content"], ideal if isinstance(ideal, str) else ideal[0])
        except (LookupError, TypeError) as error:
            raise HimalayaError(f"record {number} of {name} is not a chat sample: {error!r}") from error
        expressions = zip((question, answer), texts, strict=True)
        found = [re.fullmatch(expression.pattern, text, re.DOTALL) for expression, text in expressions]
        if all(found):
            yield {field: value for match in found if match for field, value in match.groupdict(default="").items()}
