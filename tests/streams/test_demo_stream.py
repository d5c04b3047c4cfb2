"""The demo stream itself: the same items on every machine, learnable, disjoint. Needs 18 MB of archives once."""

import re
from collections import Counter

from himalaya_adapter.streams import Stream
from himalaya_adapter.streams.plain_text import held_out_text
from himalaya_adapter.streams.task import SPLITS, Item, Task

# First 16 hexadecimal digits of the hashes of train, validation and test.
HASHES = {
    "film_verdict": ("6c5b93a6e192c449", "5ab8c6dbcfbdf8d8", "ac91d7977979c1ca"),
    "assistant_intent": ("b060939cf4d6cd59", "630102b27eb54480", "c2e37266a5da0e24"),
    "interface_translation": ("5e942ccef3b5bc20", "e13c009bceb03b98", "7aac690e9039df30"),
    "room_extraction": ("92f71b6b8e263db3", "4dc6cf9ae5f0d0eb", "f8d6e9097d850646"),
    "function_name": ("ff4cfad1a4dada50", "895b5fa5601ec704", "e2b7c30655036e87"),
    "language_identification": ("48c6045e87ca419f", "dc0f1b59f1848d1d", "7b48ffb8f3636efe"),
}
SIZES = {"train": (400, 400), "validation": (80, 100), "test": (100, 150)}
WORST_CONSTANT_SCORE = 0.55  # the share of the commonest target; a two-class task cannot be below 0.5


def test_items_are_those_of_every_machine(demo: Stream) -> None:
    assert {task.name: tuple(task.hashes[split][:16] for split in SPLITS) for task in demo.tasks} == HASHES


def test_mixture_and_sizes(demo: Stream) -> None:
    assert {task.spec.kind for task in demo.tasks} == {"classification", "generation", "extraction", "code"}
    assert any(task.spec.kind == "classification" and task.spec.language != "en" for task in demo.tasks)
    assert len({task.spec.language for task in demo.tasks}) == 6
    for task in demo.tasks:
        for split, (least, most) in SIZES.items():
            assert least <= len(task.split(split)) <= most, (task.name, split)


def test_neighbours_differ_in_kind_or_language(demo: Stream) -> None:
    for one, other in zip(demo.tasks, demo.tasks[1:], strict=False):
        assert (one.spec.kind, one.spec.language) != (other.spec.kind, other.spec.language)


def test_no_constant_answer_solves_a_task(demo: Stream) -> None:
    for task in demo.tasks:
        commonest = Counter(item.target for item in task.test).most_common(1)[0][1]
        assert commonest / len(task.test) <= WORST_CONSTANT_SCORE, task.name


def test_every_label_is_in_train_and_test(demo: Stream) -> None:
    for task in demo.tasks:
        for split in ("train", "test"):
            assert set(task.spec.labels) <= {item.target for item in task.split(split)}, (task.name, split)


def test_splits_are_disjoint_within_and_prompts_across_tasks(demo: Stream) -> None:
    prompts = [item.prompt for task in demo.tasks for split in SPLITS for item in task.split(split)]
    assert len(prompts) == len(set(prompts))
    for task in demo.tasks:
        sources = [{item.source for item in task.split(split)} for split in SPLITS]
        assert sum(map(len, sources)) == len(set.union(*sources)), task.name


def test_prompts_name_neither_task_nor_archive(demo: Stream) -> None:
    names = [task.name for task in demo.tasks] + [task.spec.source.archive for task in demo.tasks]
    for task in demo.tasks:
        template = task.spec.template.lower()
        assert not any(re.search(rf"\b{name}\b", template) for name in names)
        for item in every_item(task):
            assert task.name not in item.prompt
            assert item.prompt == item.prompt.rstrip()
            assert item.target == item.target.strip() != ""


def test_the_room_stands_in_the_sentence(demo: Stream) -> None:
    (task,) = (task for task in demo.tasks if task.spec.kind == "extraction")
    assert all(item.target in item.prompt for item in every_item(task))


def test_held_out_text_is_in_no_task(demo: Stream) -> None:
    texts = held_out_text(offline=True)
    assert len(texts) == len(set(texts)) == 60
    prompts = "\n".join(item.prompt for task in demo.tasks for item in every_item(task))
    assert not any(text[:60] in prompts for text in texts)


def every_item(task: Task) -> list[Item]:
    return [item for split in SPLITS for item in task.split(split)]
