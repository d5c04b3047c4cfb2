"""Voice-assistant sentence templates: one row per sentence that a template expands to.

A template is text with ``[optional]``, ``(one|other)``, ``(any;order)``, ``<rule>`` and ``{list}`` or ``{list:slot}``.
Choices are taken by a hash of the template, so the sentences are the same on every machine.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.schema import Count
from himalaya_adapter.streams.readers.types import Row
from himalaya_adapter.streams.splits import stable_hash

MAX_DEPTH = 30


def read_assistant_sentences(
    content: bytes,
    name: str,
    *,
    sentences_per_intent: Count,
    fill: Mapping[str, list[str]] | None = None,
    slot: str | None = None,
) -> Iterator[Row]:
    """Yield ``sentence``, ``intent``, ``template`` and one field per slot of the sentence.

    Args:
        content: JSON with ``intents``, ``lists`` and ``expansion_rules``.
        name: File name.
        sentences_per_intent: Spread evenly over an intent's templates.
        fill: List name to values, for lists that the file leaves open, such as the names of rooms.
        slot: Yield only sentences that fill this slot.
    """
    data = json.loads(content)
    lists = {key: _list_values(value) for key, value in data["lists"].items()} | dict(fill or {})
    rules, intents = data["expansion_rules"], data["intents"]
    for intent, blocks in intents.items():
        templates = sorted({text for block in blocks["data"] for text in block["sentences"]})
        count = -(-sentences_per_intent // len(templates)) if templates else 0
        for template in templates:
            for index in range(count):
                expansion = _Expansion(rules, lists, f"{template} {index}")
                sentence = expansion.sentence(template)
                if sentence is not None and (slot is None or slot in expansion.slots):
                    yield {"sentence": sentence, "intent": intent, "template": template, **expansion.slots}


def _list_values(entry: Mapping[str, Any]) -> list[str]:
    """The values of a list; none for a list that is open ("wildcard")."""
    if "values" in entry:
        return [value if isinstance(value, str) else value["in"] for value in entry["values"]]
    if "range" in entry:
        bounds = entry["range"]
        return [str(number) for number in range(bounds["from"], bounds["to"] + 1, bounds.get("step", 1))]
    return []


class _Open(Exception):
    """The sentence needs a list that has no values."""


class _Expansion:
    """One random walk through a template; ``slots`` collects what was put into them."""

    def __init__(self, rules: Mapping[str, str], lists: Mapping[str, list[str]], seed: str):
        self.rules, self.lists, self.seed = rules, lists, seed
        self.slots: dict[str, str] = {}
        self.choices = 0

    def sentence(self, template: str) -> str | None:
        """The expanded sentence with single spaces, or ``None`` if it needs a list without values."""
        try:
            return " ".join(self._text(template, 0).split())
        except _Open:
            return None

    def _choose(self, count: int) -> int:
        self.choices += 1
        return stable_hash(f"{self.seed} {self.choices}") % count

    def _text(self, template: str, depth: int) -> str:
        """Expand ``one|other`` at the outermost level, then every bracket of the part that was chosen."""
        if depth > MAX_DEPTH:
            raise HimalayaError(f"sentence rules refer to themselves in '{template}'")
        permuted = _split(template, ";")
        if len(permuted) > 1:
            order = sorted(permuted, key=lambda part: stable_hash(f"{self.seed} {part}"))
            return " ".join(self._text(part, depth + 1) for part in order)
        parts = _split(template, "|")
        return self._sequence(parts[self._choose(len(parts))], depth)

    def _sequence(self, text: str, depth: int) -> str:
        out = []
        for piece in _pieces(text):
            bracket, inner = piece[0], piece[1:-1]
            if len(piece) == 1:
                out.append(piece)
            elif bracket == "(" or (bracket == "[" and self._choose(2)):
                out.append(self._text(inner, depth + 1))
            elif bracket == "<":
                if inner not in self.rules:
                    raise HimalayaError(f"sentence template refers to the unknown rule '<{inner}>'")
                out.append(self._text(self.rules[inner], depth + 1))
            elif bracket == "{":
                out.append(self._value(inner, depth))
        return "".join(out)

    def _value(self, reference: str, depth: int) -> str:
        name, _, slot = reference.partition(":")
        values = self.lists.get(name)
        if not values:
            raise _Open(name)
        value = self._text(values[self._choose(len(values))], depth + 1)
        self.slots[slot or name] = value
        return value


BRACKETS = {"(": ")", "[": "]", "<": ">", "{": "}"}


def _end(text: str, start: int) -> int:
    """Where the character or bracket that begins at ``start`` ends."""
    if text[start] not in BRACKETS:
        return start + 1
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == text[start]) - (text[index] == BRACKETS[text[start]])
        if depth == 0:
            return index + 1
    raise HimalayaError(f"unbalanced '{text[start]}' in sentence template '{text}'")


# A template is expanded thousands of times.
@lru_cache(2**14)
def _pieces(text: str) -> tuple[str, ...]:
    """A text cut into characters and outermost brackets, each bracket with its inside."""
    pieces, at = [], 0
    while at < len(text):
        end = _end(text, at)
        pieces.append(text[at:end])
        at = end
    return tuple(pieces)


@lru_cache(2**14)
def _split(text: str, separator: str) -> tuple[str, ...]:
    """Split at separators that are outside of all brackets."""
    parts = [""]
    for piece in _pieces(text):
        if piece == separator:
            parts.append("")
        else:
            parts[-1] += piece
    return tuple(parts)
