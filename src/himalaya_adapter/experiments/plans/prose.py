"""What a plan says only in prose: a few patterns, each with the key that it gives and an example of what it reads.

A field wins over prose: a key that ``settings`` gives is not read from prose.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from himalaya_adapter.errors import HimalayaError

COUNT = r"(\d[\d,]*(?:\.\d+)?(?:\s?k\b)?)"
WORDS = ("one", "two", "three", "four", "five")
# English names of languages that plans may spell out.
LANGUAGES: Mapping[str, str] = MappingProxyType(
    {
        **{"arabic": "ar", "bengali": "bn", "chinese": "zh", "czech": "cs", "danish": "da", "dutch": "nl"},
        **{"english": "en", "finnish": "fi", "french": "fr", "german": "de", "greek": "el", "hebrew": "he"},
        **{"hindi": "hi", "hungarian": "hu", "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko"},
        **{"norwegian": "no", "polish": "pl", "portuguese": "pt", "romanian": "ro", "russian": "ru", "spanish": "es"},
        **{"swahili": "sw", "swedish": "sv", "telugu": "te", "thai": "th", "turkish": "tr", "ukrainian": "uk"},
    }
)
# With a capital: "polish" is a verb.
LANGUAGE = re.compile(rf"\b([A-Z]{{2}})\s?→\s?([A-Z]{{2}})\b|\b({'|'.join(map(str.capitalize, LANGUAGES))})\b")
LANGUAGE_COUNT = re.compile(r"\b(\d+) languages\b")


def count(text: str) -> int:
    """``25``, ``50 k``, ``50,000`` or ``one`` as a whole number."""
    if text.casefold() in WORDS:
        return WORDS.index(text.casefold()) + 1
    number = text.replace(",", "").replace(" ", "").casefold()
    return round(float(number.removesuffix("k")) * (1000 if number.endswith("k") else 1))


@dataclass(frozen=True)
class Pattern:
    """A pattern that gives a key.

    Args:
        key: The key.
        expression: Its first group that matches is the value's text.
        read: From that text to the value.
        example: A text that it reads.
        value: What it reads there.
    """

    key: str
    expression: str
    read: Callable[[str], Any]
    example: str
    value: Any


# Read from experimental_design.experiment_summary.
SUMMARY_PATTERNS = (
    Pattern(
        "dataset.num_tasks",
        rf"\b{COUNT}-task\b|\b{COUNT} (?:(?!per\b)[\w-]+ ){{0,3}}tasks\b",
        count,
        "a stream of 25 heterogeneous NLP tasks",
        25,
    ),
    Pattern(
        "dataset.max_samples_per_task",
        rf"\b(?:capped at|at most|up to|≤) {COUNT}(?: samples| examples)? per task\b",
        count,
        "samples are capped at 50 k per task",
        50000,
    ),
    Pattern(
        "training.task_epochs",
        rf"\b[Tt]rain(?:ed)? for ({'|'.join(WORDS)}|\d+) epochs?\b",
        count,
        "Train for one epoch",
        1,
    ),
    Pattern("training.max_updates_per_task", rf"\bmax\.? {COUNT} updates\b", count, "(max 50 k updates)", 50000),
    Pattern("training.batch_size", rf"\b[Bb]atch size (?:of )?{COUNT}", count, "a batch size of 16", 16),
    Pattern(
        "evaluation.cpu_latency_device",
        r"\b(Raspberry[- ]Pi[- ]\d)\b",
        lambda text: text.replace(" ", "-").casefold(),
        "on a Raspberry Pi 4",
        "raspberry-pi-4",
    ),
)
# Read from the text of the method: proposed_method, or the entry of comparative_methods.
METHOD_PATTERNS = (
    Pattern(
        "model.adapter.core_dictionary.num_atoms",
        rf"\b{COUNT}-(?:vector|atom)\b[\w -]{{0,20}}\bcore\b|\bk_c\s?=\s?{COUNT}",
        count,
        "a fixed 24-vector isotropic core",
        24,
    ),
    Pattern(
        "model.adapter.elastic_dictionary.max_atoms",
        rf"\b{COUNT}-slot elastic\b|\bk_e\s?[=≤]\s?{COUNT}",
        count,
        "a 16-slot elastic dictionary",
        16,
    ),
    Pattern(
        "model.adapter.elastic_dictionary.quantisation_bits",
        r"\b(\d+)-bit (?:smooth )?quantisation\b",
        count,
        "stored in 3-bit smooth quantisation",
        3,
    ),
    Pattern(
        "model.adapter.coeff_precision_bits",
        r"\bcoefficient indices[\w, ]{0,12}(\d+)-bit\b",
        count,
        "coefficient indices U,V are 8-bit",
        8,
    ),
    Pattern(
        "model.adapter.router.hidden_params",
        rf"(?:H_θ|router)[\s(≈~]{{0,6}}{COUNT}[- ]param",
        count,
        "H_θ (≈45 k params)",
        45000,
    ),
    Pattern(
        "model.adapter.router.expected_active_atoms",
        r"[≤<]\s?(\d+) atoms activate\b|\bactive atoms per token\s?[≤<]\s?(\d+)",
        count,
        "≤ 3 atoms activate per token",
        3,
    ),
    Pattern(
        "training.fisher_projection_steps",
        r"\b(\d+)-step closed-form Fisher\b",
        count,
        "a 20-step closed-form Fisher projection",
        20,
    ),
    Pattern(
        "model.adapter.total_parameter_budget_mb",
        r"<\s?(\d+(?:\.\d+)?)\s?MB\b",
        float,
        "< 2.5 MB at 8-bit",
        2.5,
    ),
)
STREAM_NAME = re.compile(r"[“\"]([^“”\"]+)[”\"] (?:collection|stream)\b")


def read_prose(text: str, patterns: tuple[Pattern, ...], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values that a text gives, by keys.

    Args:
        text: The prose.
        patterns: What to look for.
        given: Keys that are given otherwise, and so not looked for.
        where: The field, for the message.

    Raises:
        HimalayaError: The text gives two values for one key.
    """
    found: dict[str, Any] = {}
    for pattern in patterns:
        if pattern.key in given:
            continue
        matches = re.finditer(pattern.expression, text)
        values = [pattern.read(next(group for group in match.groups() if group)) for match in matches]
        if len(set(values)) > 1:
            said = " and ".join(str(value) for value in dict.fromkeys(values))
            raise HimalayaError(
                f"{where} says {said} for {pattern.key}: give '{pattern.key}' in experimental_design.settings"
            )
        if values:
            found[pattern.key] = values[0]
    return found


def read_stream_name(text: str) -> str | None:
    """The name in quotes before the word collection or stream: ``“Continual Task Stream 25” collection``."""
    found = STREAM_NAME.search(text)
    return found[1] if found else None


def read_languages(text: str) -> list[str] | None:
    """The languages that a text names, in order: pairs such as ``EN→DE`` and English names (``Swahili``).

    ``multi`` stands for those that are counted (``10 languages``) and not named. ``None`` if none is named.
    """
    codes: list[str] = []
    for source, target, name in LANGUAGE.findall(text):
        codes += [LANGUAGES[name.casefold()]] if name else [source.casefold(), target.casefold()]
    named = list(dict.fromkeys(codes))
    counted = LANGUAGE_COUNT.search(text)
    if named and counted and int(counted[1]) > len(named):
        named.append("multi")
    return named or None
