"""Training items become tokens when they are asked for: memory does not grow with the number of items."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_stream

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams import Item, Task, load_stream
from himalaya_adapter.streams.encoding import encode_item
from himalaya_adapter.training.batches import EncodedItems, fitting

MEGABYTE = 2**20


def test_the_tokens_are_those_of_the_items(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tasks = load_stream(str(write_stream(tmp_path))).tasks
    examples = EncodedItems(tiny_tokenizer, tasks, 96)
    items = [item for task in tasks for item in task.train]
    assert list(examples) == [encode_item(tiny_tokenizer, item, 96) for item in items]


def test_memory_does_not_grow_with_the_items(tiny_tokenizer: Any, tmp_path: Path) -> None:
    task = load_stream(str(write_stream(tmp_path))).tasks[1]

    def peak(count: int) -> int:
        numbered: Task = replace(task, train=tuple(Item(f"Text: {n}\n" * 8, "blue", str(n)) for n in range(count)))
        tracemalloc.start()
        try:
            examples = EncodedItems(tiny_tokenizer, [numbered], 96)
            assert sum(len(example["input_ids"]) for example in examples) > 40 * count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # Tokens of 1,000 items as lists would take more than a megabyte.
    assert peak(1000) - peak(100) < MEGABYTE / 8


def test_what_does_not_fit_is_left_out_or_stops(tiny_tokenizer: Any, tmp_path: Path) -> None:
    task = load_stream(str(write_stream(tmp_path))).tasks[1]
    long, short = (Item("Text:", "blue " * count, str(count)) for count in (200, 1))
    mixed = replace(task, train=(long, short))
    with pytest.raises(HimalayaError, match=r"^task 'colour_word': .* on_bad_item: skip leaves such items out"):
        fitting(tiny_tokenizer, mixed, 96)
    skipping = replace(mixed, spec=replace(task.spec, on_bad_item="skip"))
    assert fitting(tiny_tokenizer, skipping, 96).train == (short,)
    with pytest.raises(HimalayaError, match="no target has less than 96 tokens"):
        fitting(tiny_tokenizer, replace(skipping, train=(long,)), 96)
