"""Splits never overlap, do not depend on the order of reading, and are the same everywhere."""

import random
import tracemalloc
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from himalaya_adapter.streams.splits import content_hash, cut, cut_given, split_of, stable_hash, stratified
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
    assert sum(cut(items, Limits()).values(), ()) == (Item("a", "yes", "1"),)


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


def numbered(count: int, name: str = "question") -> Iterator[Item]:
    """Every 40th item repeats a prompt, now with the same and now with another target."""
    for number in range(count):
        yield Item(f"{name} {number}", "yes", f"story {number // 3}")
        if number % 40 == 0:
            yield Item(f"{name} {number // 2}", "yes" if number % 80 else "no", f"story {number}")


def test_many_items_are_cut_as_if_all_had_been_kept() -> None:
    caps = Limits(train=300, validation=50, test=80)
    full = cut(numbered(20_000), Limits())
    assert cut(numbered(20_000), caps) == {split: items[: caps.of(split)] for split, items in full.items()}


def test_copies_in_other_white_space_are_cut_as_if_all_had_been_kept() -> None:
    chance = random.Random(7)
    items = [
        Item(
            f"question {number}{chance.choice((' ', '  '))}?", chance.choice(("yes",) * 5 + ("no",)), f"{number // 3}"
        )
        for number in (chance.randrange(2_500) for _ in range(4_000))
    ]
    caps = Limits(train=20, validation=5, test=8)
    full = cut(items, Limits())
    for _ in range(3):
        assert cut(items, caps) == {split: kept[: caps.of(split)] for split, kept in full.items()}
        chance.shuffle(items)


@given(ITEMS, ITEMS)
def test_a_given_training_set_loses_what_is_held_out(train: list[Item], held_out: list[Item]) -> None:
    splits = cut_given(train, held_out, Limits())
    tested = splits["validation"] + splits["test"]
    assert {item.prompt for item in tested} <= {item.prompt for item in held_out}
    assert not {item.source for item in splits["validation"]} & {item.source for item in splits["test"]}
    assert not {item.source for item in splits["train"]} & {item.source for item in held_out}
    assert not {item.prompt for item in splits["train"]} & {item.prompt for item in held_out}


def test_a_given_training_set_is_left_whole_otherwise() -> None:
    splits = cut_given(numbered(50, "learn"), numbered(60, "test"), Limits())
    assert splits["train"] == ()  # both have the same stories
    elsewhere = [Item(one.prompt, one.target, f"other {one.source}") for one in numbered(50, "learn")]
    splits = cut_given(elsewhere, numbered(60, "test"), Limits())
    assert len(splits["train"]) == 50 - 1
    assert len(splits["validation"] + splits["test"]) == 60 - 1
    assert abs(len(splits["validation"]) / 59 - 0.13 / 0.35) < 0.2


def test_memory_grows_with_the_caps_and_not_with_the_items() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        cut(numbered(count), Limits(train=500, validation=50, test=50))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40_000) < 1.5 * peak(10_000)


LABELS = ("rare", "common", "often")


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=200), st.integers(1, 60), st.integers(0, 60))
def test_a_stratified_subset_keeps_the_labels_shares_and_grows_by_adding(
    labels: list[str], limit: int, more: int
) -> None:
    items = [Item(f"question {number}", label, str(number)) for number, label in enumerate(labels)]
    chosen = stratified(items, LABELS, limit)
    assert len(chosen) == min(limit, len(items))
    assert [int(item.source) for item in chosen] == sorted(int(item.source) for item in chosen)
    assert set(chosen) <= set(stratified(items, LABELS, limit + more))
    for label in LABELS:
        share = sum(item.target == label for item in items) / len(items)
        assert abs(sum(item.target == label for item in chosen) - share * len(chosen)) <= 1.5


def test_without_labels_the_first_items_are_chosen() -> None:
    items = [Item(f"question {number}", str(number % 2), str(number)) for number in range(20)]
    assert stratified(items, (), 7) == tuple(items[:7])
    assert stratified(items, ("0", "1"), None) == tuple(items)
