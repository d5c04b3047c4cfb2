"""Deterministic splits: cut by a hash of the source item, so they are the same on every machine and never overlap."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from himalaya_adapter.streams.task import SPLITS, Item, Limits

TEST_SHARE = 0.22
VALIDATION_SHARE = 0.13
HASH_RANGE = 2**64


def stable_hash(text: str) -> int:
    """A 64-bit hash of ``text`` that does not depend on the machine, locale, Python version or process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def without_duplicates(items: Iterable[Item]) -> list[Item]:
    """Keep one item per prompt; a prompt that occurs with different targets has no right answer and is left out."""
    by_prompt: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_prompt[item.prompt].append(item)
    unambiguous = (same for same in by_prompt.values() if len({item.target for item in same}) == 1)
    return [min(same, key=lambda item: item.source) for same in unambiguous]


def is_in_part(source: str, part: tuple[int, int]) -> bool:
    """Whether a source item belongs to the i-th of n disjoint parts, ``part = (i, n)`` counted from 1."""
    number, count = part
    return stable_hash(f"part {source}") % count == number - 1


def with_label_noise(items: Sequence[Item], labels: Sequence[str], share: float) -> tuple[Item, ...]:
    """Give ``share`` of the items another label, the same items and labels on every machine."""
    return tuple(
        replace(item, target=_other_label(item, labels))
        if stable_hash(f"noise {item.prompt}") / HASH_RANGE < share
        else item
        for item in items
    )


def _other_label(item: Item, labels: Sequence[str]) -> str:
    others = [label for label in labels if label != item.target]
    return others[stable_hash(f"wrong {item.prompt}") % len(others)]


def split_of(source: str) -> str:
    """The split that every item of this source item belongs to, in whichever task it occurs."""
    position = stable_hash(f"split {source}") / HASH_RANGE
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


def cut(items: Iterable[Item], caps: Limits) -> dict[str, tuple[Item, ...]]:
    """Cut items into train, validation and test, each in hash order and no longer than its cap.

    Hash order is a shuffle that is the same everywhere, so a lower cap gives a prefix of a higher one.
    """
    splits: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for item in without_duplicates(items):
        splits[split_of(item.source)].append(item)
    for chosen in splits.values():
        chosen.sort(key=lambda item: (stable_hash(f"order {item.prompt}"), item.prompt))
    return {name: tuple(chosen[: caps.of(name)]) for name, chosen in splits.items()}


def content_hash(items: Sequence[Item]) -> str:
    """SHA-256 over prompts, targets and sources in order, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.prompt, item.target, item.source], ensure_ascii=True).encode("ascii"))
        digest.update(b"\n")
    return digest.hexdigest()
