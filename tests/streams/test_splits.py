"""Splits never overlap, do not depend on the order of reading, and are the same everywhere."""

import random

from hypothesis import given
from hypothesis import strategies as st

from himalaya_adapter.streams.splits import content_hash, cut, split_of, stable_hash, without_duplicates
from himalaya_adapter.streams.task import SPLITS, Item, Limits

# Few distinct values, so that prompts and sources do collide.
ITEMS = st.lists(
    st.builds(
        Item,
        prompt=st.integers(0, 60).map("question {}".format),
        target=st.sampled_from(["yes", "no"]),
        source=st.integers(0, 40).map("story {}".format),
    ),
    max_size=120,
)


@given(ITEMS)
def test_splits_share_neither_source_nor_prompt(items: list[Item]) -> None:
    splits = cut(items, Limits())
    for one in SPLITS:
        for other in SPLITS:
            if one != other:
                assert not {item.source for item in splits[one]} & {item.source for item in splits[other]}
                assert not {item.prompt for item in splits[one]} & {item.prompt for item in splits[other]}


@given(ITEMS, st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_reading_order(items: list[Item], shuffler: random.Random) -> None:
    shuffled = list(items)
    shuffler.shuffle(shuffled)
    assert cut(items, Limits()) == cut(shuffled, Limits())


@given(ITEMS, st.integers(1, 20))
def test_a_lower_cap_gives_a_prefix(items: list[Item], cap: int) -> None:
    full, capped = cut(items, Limits()), cut(items, Limits(train=cap, test=1))
    assert capped["train"] == full["train"][:cap]
    assert capped["test"] == full["test"][:1]
    assert capped["validation"] == full["validation"]


@given(ITEMS)
def test_every_unambiguous_prompt_is_kept_once(items: list[Item]) -> None:
    targets: dict[str, set[str]] = {}
    for item in items:
        targets.setdefault(item.prompt, set()).add(item.target)
    kept = sorted(item.prompt for split in cut(items, Limits()).values() for item in split)
    assert kept == sorted(prompt for prompt, found in targets.items() if len(found) == 1)


def test_exact_repeats_collapse_and_contradictions_go() -> None:
    items = [Item("a", "yes", "2"), Item("a", "yes", "1"), Item("b", "yes", "1"), Item("b", "no", "1")]
    assert without_duplicates(items) == [Item("a", "yes", "1")]


def test_hashes_are_those_of_every_machine() -> None:
    """Expected values computed with sha256sum, not with this code."""
    assert stable_hash("Ärger") == 0x23C8EF3213A08566
    assert content_hash([Item("p", "ü", "s")]) == "35332c6adc30b9ca7819796e1c8966bb9da3beba9f900abfe6f399b12633973d"
    assert [split_of(f"story {number}") for number in (0, 2, 3)] == ["train", "test", "validation"]


def test_shares_of_the_splits() -> None:
    counts = dict.fromkeys(SPLITS, 0)
    for number in range(10_000):
        counts[split_of(f"source {number}")] += 1
    assert abs(counts["test"] / 10_000 - 0.22) < 0.02
    assert abs(counts["validation"] / 10_000 - 0.13) < 0.02


def test_content_hash_sees_order_and_every_part() -> None:
    items = [Item("p", "t", "s"), Item("q", "t", "s")]
    changed = [items[::-1], items[:1], [Item("p", "t", "x"), items[1]], [Item("p", "x", "s"), items[1]]]
    assert len({content_hash(items), *map(content_hash, changed)}) == 5
