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

BRACKETS = {"(": ")", "[": "]", "<": ">", "{": "}"}


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
    known = {key: values for key, values in lists.items() if values}
    for intent, blocks in data["intents"].items():
        templates = sorted({text for block in blocks["data"] for text in block["sentences"]})
        count = -(-sentences_per_intent // len(templates)) if templates else 0
        for template in templates:
            for index in range(count):
                expansion = _Expansion(data["expansion_rules"], known, f"{template} {index}")
                try:
                    sentence = " ".join(expansion.text(template).split())
                except KeyError:  # it needs a list that has no values
                    continue
                if slot is None or slot in expansion.slots:
                    yield {"sentence": sentence, "intent": intent, "template": template, **expansion.slots}


def _list_values(entry: Mapping[str, Any]) -> list[str]:
    """The values of a list; none for a list that is open ("wildcard")."""
    if "values" in entry:
        return [value if isinstance(value, str) else value["in"] for value in entry["values"]]
    if "range" in entry:
        bounds = entry["range"]
        return [str(number) for number in range(bounds["from"], bounds["to"] + 1, bounds.get("step", 1))]
    return []


class _Expansion:
    """One random walk through a template; ``slots`` collects what was put into them."""

    def __init__(self, rules: Mapping[str, str], lists: Mapping[str, list[str]], seed: str):
        self.rules, self.lists, self.seed = rules, lists, seed
        self.slots: dict[str, str] = {}
        self.choices = 0

    def text(self, template: str) -> str:
        """Expand ``one|other`` at the outermost level, then every bracket of the part that was chosen."""
        permuted = _split(template, ";")
        if len(permuted) > 1:
            return " ".join(map(self.text, sorted(permuted, key=lambda part: stable_hash(f"{self.seed} {part}"))))
        parts = _split(template, "|")
        return "".join(map(self._expanded, _pieces(parts[self._choose(len(parts))])))

    def _choose(self, count: int) -> int:
        self.choices += 1
        return stable_hash(f"{self.seed} {self.choices}") % count

    def _expanded(self, piece: str) -> str:
        bracket, inner = piece[0], piece[1:-1]
        if len(piece) == 1:
            return piece
        if bracket == "<":
            if inner not in self.rules:
                raise HimalayaError(f"sentence template refers to the unknown rule '<{inner}>'")
            return self.text(self.rules[inner])
        if bracket == "{":
            name, _, slot = inner.partition(":")
            values = self.lists[name]
            value = self.text(values[self._choose(len(values))])
            self.slots[slot or name] = value
            return value
        return self.text(inner) if bracket == "(" or self._choose(2) else ""


# A template is expanded thousands of times.
@lru_cache(2**14)
def _pieces(text: str) -> tuple[str, ...]:
    """A text cut into characters and outermost brackets, each bracket with its inside."""
    pieces: list[str] = []
    opening, depth = "", 0
    for character in text:
        if depth:
            pieces[-1] += character
            depth += (character == opening) - (character == BRACKETS[opening])
        else:
            pieces.append(character)
            opening, depth = character, int(character in BRACKETS)
    if depth:
        raise HimalayaError(f"unbalanced '{opening}' in sentence template '{text}'")
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
