"""The stream for choosing hyper-parameters: small, learnable, and of no text that another stream learns or tests."""

from collections import Counter

from himalaya_adapter.streams import Stream
from himalaya_adapter.streams.task import SPLITS, Item, Task

# First 16 hexadecimal digits of the hashes of train, validation and test.
HASHES = {
    "two_way_reasoning": ("a71c19b5bf05e1af", "808ae416ef0463b2", "353f9eed29a0c0c3"),
    "room_italian": ("44cc11c9901386a8", "26ed154f6d293c9f", "47785f034f483693"),
    "method_name": ("bde7c9609b37325a", "a695f87488f44234", "58ba0b5214b0a81d"),
    "occupation_group": ("11b3b0eff506c9d5", "89ae1a3e73c2279a", "9da11c0fddb33ca3"),
    "pinyin_of_three": ("3066c742c491bbfe", "f6be26ce7ce36393", "831b9a4b110a06b4"),
}
LEAST = {"train": 400, "validation": 80, "test": 120}
MOST = {"train": 400, "validation": 100, "test": 150}
WORST_CONSTANT_ANSWER = 0.56  # share of the commonest answer in a test set; there is a task of two classes


def every_item(task: Task) -> list[Item]:
    return [item for split in SPLITS for item in task.split(split)]


def test_items_are_those_of_every_machine(validation: Stream) -> None:
    assert {task.name: tuple(task.hashes[split][:16] for split in SPLITS) for task in validation.tasks} == HASHES


def test_splits_are_disjoint(validation: Stream) -> None:
    prompts = Counter(item.prompt for task in validation.tasks for item in every_item(task))
    assert max(prompts.values()) == 1
    for task in validation.tasks:
        sources = [{item.source for item in task.split(split)} for split in SPLITS]
        assert sum(map(len, sources)) == len(set.union(*sources)), task.name


def test_mixture_and_sizes(validation: Stream) -> None:
    assert {task.spec.kind for task in validation.tasks} == {"classification", "generation", "extraction", "code"}
    assert len({task.spec.language for task in validation.tasks}) == 4
    for task in validation.tasks:
        for split in SPLITS:
            assert LEAST[split] <= len(task.split(split)) <= MOST[split], (task.name, split)
        commonest = Counter(item.target for item in task.test).most_common(1)[0][1]
        assert commonest / len(task.test) <= WORST_CONSTANT_ANSWER, task.name
