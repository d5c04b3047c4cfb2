"""Deterministic splits: cut by a hash of the source item, so they are the same on every machine and never overlap."""

import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from himalaya_adapter.streams.task import SPLITS, Item, Limits, Source

TEST_SHARE = 0.22
VALIDATION_SHARE = 0.13
HASH_RANGE = 2**64
SPARE = 1000  # prompts
ROOM = 1.4  # prompts remembered for every prompt that is needed
SURPLUS = 1.1  # prompts needed for every item of a cap
# White space that may differ between two copies of one text: inside a line and at its end, not its indentation.
SPACES, LINE_END = re.compile(r"(?<=\S)[^\S\n]+"), re.compile(r" +(?=\n|$)")
CONTRADICTION = "prompt with different targets"

Splits = dict[str, tuple[Item, ...]]


def stable_hash(text: str) -> int:
    """A 64-bit hash of ``text`` that does not depend on the machine, locale, Python version or process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def normal_form(text: str) -> str:
    """What copies of a text have in common that differ in white space or in Unicode form only."""
    return LINE_END.sub("", SPACES.sub(" ", unicodedata.normalize("NFC", text)))


def form_of(source: Source) -> Callable[[str], str]:
    """The form of a task's texts by which its splits are cut: the one that copies have in common.

    Of archives, which are pinned, it is the text itself: what was measured on their splits stays comparable.
    """
    return str if source.archive else normal_form


def is_in_part(source: str, part: tuple[int, int]) -> bool:
    """Whether a source item belongs to the i-th of n disjoint parts, ``part = (i, n)`` counted from 1."""
    number, count = part
    return count == 1 or stable_hash(f"part {source}") % count == number - 1


def with_label_noise(items: Sequence[Item], labels: Sequence[str], share: float) -> tuple[Item, ...]:
    """Give ``share`` of the items another label, the same items and labels on every machine."""
    noisy = []
    for item in items:
        if stable_hash(f"noise {item.prompt}") / HASH_RANGE < share:
            others = [label for label in labels if label != item.target]
            item = replace(item, target=others[stable_hash(f"wrong {item.prompt}") % len(others)])
        noisy.append(item)
    return tuple(noisy)


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


def cut(
    items: Iterable[Item],
    caps: Limits,
    split_of: Callable[[str], str] = split_of,
    *,
    skipped: Counter[str] | None = None,
    form: Callable[[str], str] = normal_form,
) -> Splits:
    """Cut items into train, validation and test, each in hash order and no longer than its cap.

    Hash order is a shuffle that is the same everywhere, so a lower cap gives a prefix of a higher one. One item is
    kept per prompt, whatever its white space; a prompt that occurs with different targets has no right answer and is
    left out, which ``skipped`` counts. With a cap on every split, memory grows with the caps and not with the number
    of items. Prompts are ordered by the hash of their ``form``, by default that which all copies of one have.
    """

    def order(item: Item) -> int:
        return stable_hash(f"order {form(item.prompt)}")

    by_prompt: dict[str, Item] = {}  # by the prompt's normal form
    contradicted: set[str] = set()
    sizes = [caps.of(split) for split in SPLITS]
    # How many prompts are remembered before those that no cap can reach are given up.
    room = math.inf if None in sizes else SPARE + int(ROOM * sum(size or 0 for size in sizes))
    last = HASH_RANGE
    for item in items:
        if order(item) > last:
            continue
        prompt = normal_form(item.prompt)
        known = by_prompt.setdefault(prompt, item)
        if known is not item:
            if normal_form(known.target) != normal_form(item.target):
                contradicted.add(prompt)
            by_prompt[prompt] = min(known, item, key=lambda one: (one.source, one.prompt))
        if len(by_prompt) > room:
            kept = {prompt: item for prompt, item in by_prompt.items() if prompt not in contradicted}
            last = _last_needed(kept.values(), caps, split_of, order)
            by_prompt = {prompt: item for prompt, item in by_prompt.items() if order(item) <= last}
            contradicted &= by_prompt.keys()
            room = max(room, SPARE + int(ROOM * len(by_prompt)))
    splits: dict[str, list[Item]] = {name: [] for name in SPLITS}
    chosen = (item for prompt, item in by_prompt.items() if prompt not in contradicted)
    for item in sorted(chosen, key=lambda item: (order(item), item.prompt)):
        splits[split_of(item.source)].append(item)
    if skipped is not None and contradicted:
        skipped[CONTRADICTION] += len(contradicted)
    return {name: tuple(ordered[: caps.of(name)]) for name, ordered in splits.items()}


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


def cut_given(
    train: Iterable[Item], held_out: Iterable[Item], caps: Limits, skipped: Counter[str] | None = None
) -> Splits:
    """Cut validation and test from ``held_out``; ``train`` is left without the prompts and source items of those."""
    seen: set[int] = set()

    def remembered() -> Iterator[Item]:
        for item in held_out:
            seen.update(known_by(item))
            yield item

    def known_by(item: Item) -> set[int]:
        return {stable_hash(normal_form(text)) for text in (item.source, item.prompt)}

    tested = cut(remembered(), replace(caps, train=0), held_out_split_of, skipped=skipped)
    unseen = (item for item in train if not seen & known_by(item))
    learned = cut(unseen, Limits(train=caps.train, validation=0, test=0), lambda source: "train", skipped=skipped)
    return tested | {"train": learned["train"]}


def _last_needed(
    items: Iterable[Item], caps: Limits, split_of: Callable[[str], str], order: Callable[[Item], int]
) -> int:
    """The place in hash order where every split has its cap and some more, as later rows may contradict a prompt."""
    wanted = {split: math.ceil(SURPLUS * (caps.of(split) or 0)) for split in SPLITS}
    for item in sorted(items, key=lambda item: (order(item), item.prompt)):
        wanted[split_of(item.source)] -= 1
        if max(wanted.values()) <= 0:
            return order(item)
    return HASH_RANGE


def content_hash(items: Sequence[Item]) -> str:
    """SHA-256 over prompts, targets and sources in order, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.prompt, item.target, item.source], ensure_ascii=True).encode("ascii"))
        digest.update(b"\n")
    return digest.hexdigest()
