"""Deterministic splits: cut by a hash of the source item, so they are the same on every machine and never overlap."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from himalaya_adapter.streams.task import SPLITS, Item, Limits

TEST_SHARE = 0.22
VALIDATION_SHARE = 0.13
HASH_RANGE = 2**64
SPARE = 1000  # prompts
ROOM = 1.4  # prompts remembered for every prompt that is needed
SURPLUS = 1.1  # prompts needed for every item of a cap

Splits = dict[str, tuple[Item, ...]]


def stable_hash(text: str) -> int:
    """A 64-bit hash of ``text`` that does not depend on the machine, locale, Python version or process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


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


def held_out_split_of(source: str) -> str:
    """As ``split_of``, for the source items of a held-out set, which has no training items."""
    position = stable_hash(f"split {source}") / HASH_RANGE
    return "validation" if position < VALIDATION_SHARE / (TEST_SHARE + VALIDATION_SHARE) else "test"


def cut(items: Iterable[Item], caps: Limits, split_of: Callable[[str], str] = split_of) -> Splits:
    """Cut items into train, validation and test, each in hash order and no longer than its cap.

    Hash order is a shuffle that is the same everywhere, so a lower cap gives a prefix of a higher one. One item is
    kept per prompt; a prompt that occurs with different targets has no right answer and is left out. With a cap on
    every split, memory grows with the caps and not with the number of items.
    """
    by_prompt: dict[str, Item | None] = {}  # None: different targets
    last, room = HASH_RANGE, _room(caps)
    for item in items:
        if _order(item.prompt) > last:
            continue
        known = by_prompt.get(item.prompt, item)
        same = known is not None and known.target == item.target
        by_prompt[item.prompt] = min(known, item, key=lambda one: one.source) if known and same else None
        if room is not None and len(by_prompt) > room:
            last = _last_needed(by_prompt, caps, split_of)
            for prompt in [prompt for prompt in by_prompt if _order(prompt) > last]:
                del by_prompt[prompt]
            room = max(room, SPARE + int(ROOM * len(by_prompt)))
    splits: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for prompt in sorted(by_prompt, key=lambda prompt: (_order(prompt), prompt)):
        kept = by_prompt[prompt]
        if kept is not None:
            splits[split_of(kept.source)].append(kept)
    return {name: tuple(chosen[: caps.of(name)]) for name, chosen in splits.items()}


def stratified(items: Sequence[Item], labels: Sequence[str], limit: int | None) -> tuple[Item, ...]:
    """At most ``limit`` of the items, whose labels are as frequent as they are among all (Sainte-Laguë's method).

    The same items everywhere, in the order in which they were; a lower limit takes some of those of a higher one.
    Without labels these are the first ones, whose hash order is already a shuffle.
    """
    if limit is None or len(items) <= limit:
        return tuple(items)
    counts, seen = Counter(item.target for item in items), Counter[str]()
    places = []
    for position, item in enumerate(items):
        share = (seen[item.target] + 0.5) / counts[item.target] if labels else 0.0  # how far into its label's items
        seen[item.target] += 1
        places.append((share, position))
    return tuple(items[position] for position in sorted(position for _, position in sorted(places)[:limit]))


def cut_given(train: Iterable[Item], held_out: Iterable[Item], caps: Limits) -> Splits:
    """Cut validation and test from ``held_out``; ``train`` is left without the prompts and source items of those."""
    seen: set[int] = set()

    def remembered() -> Iterator[Item]:
        for item in held_out:
            seen.update((stable_hash(item.source), stable_hash(item.prompt)))
            yield item

    tested = cut(remembered(), replace(caps, train=0), held_out_split_of)
    unseen = (item for item in train if not seen & {stable_hash(item.source), stable_hash(item.prompt)})
    learned = cut(unseen, Limits(train=caps.train, validation=0, test=0), lambda source: "train")
    return tested | {"train": learned["train"]}


def _order(prompt: str) -> int:
    return stable_hash(f"order {prompt}")


def _room(caps: Limits) -> int | None:
    """How many prompts are remembered before those that no cap can reach are given up."""
    sizes = [caps.of(split) for split in SPLITS]
    return None if None in sizes else SPARE + int(ROOM * sum(size or 0 for size in sizes))


def _last_needed(by_prompt: Mapping[str, Item | None], caps: Limits, split_of: Callable[[str], str]) -> int:
    """The place in hash order where every split has its cap and some more, as later rows may contradict a prompt."""
    wanted = {split: math.ceil(SURPLUS * (caps.of(split) or 0)) for split in SPLITS}
    for order, prompt in sorted((_order(prompt), prompt) for prompt in by_prompt):
        item = by_prompt[prompt]
        if item is not None:
            wanted[split_of(item.source)] -= 1
        if max(wanted.values()) <= 0:
            return order
    return HASH_RANGE


def content_hash(items: Sequence[Item]) -> str:
    """SHA-256 over prompts, targets and sources in order, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.prompt, item.target, item.source], ensure_ascii=True).encode("ascii"))
        digest.update(b"\n")
    return digest.hexdigest()
