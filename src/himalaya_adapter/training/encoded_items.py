"""The training items of tasks as tokens, made when they are asked for."""

import logging
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams import Item, Task
from himalaya_adapter.streams.encoding import TargetTooLong, encode_item

logger = logging.getLogger(__name__)


class EncodedItems(Dataset[dict[str, list[int]]]):
    """What ``encode_item`` returns for each training item of some tasks; no tokens are kept, whatever their number.

    An item whose target does not fit into ``max_length`` is skipped, or stops the run, as its task's ``on_bad_item``
    says.

    Args:
        tokenizer: The backbone's.
        tasks: Whose training items.
        max_length: The most tokens of an item.

    Raises:
        HimalayaError: A target that does not fit in a task with ``on_bad_item: stop``, or nothing but such targets.
    """

    def __init__(self, tokenizer: Any, tasks: Sequence[Task], max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.items = [item for task in tasks for item in self._fitting(task)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return encode_item(self.tokenizer, self.items[index], self.max_length)

    def first(self, count: int) -> list[dict[str, list[int]]]:
        """The first examples, no more than ``count``."""
        return [self[index] for index in range(min(count, len(self)))]

    def _fitting(self, task: Task) -> list[Item]:
        items = []
        for item in task.train:
            try:
                encode_item(self.tokenizer, item, self.max_length)
            except TargetTooLong as error:
                if task.spec.on_bad_item == "stop":
                    raise HimalayaError(f"task '{task.name}': {error}") from error
            else:
                items.append(item)
        if not items:
            raise HimalayaError(f"task '{task.name}': no target has less than {self.max_length} tokens")
        if len(items) < len(task.train):
            logger.warning("task %s: %d items skipped, target too long", task.name, len(task.train) - len(items))
        return items
