"""Training items become tokens when they are asked for: memory does not grow with the number of items."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_runs import write_stream

from himalaya_adapter.streams import Item, Task, load_stream
from himalaya_adapter.streams.encoding import encode_item
from himalaya_adapter.training.batches import EncodedItems

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
