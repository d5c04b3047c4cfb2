"""Which of a user's items are held out, to score the task on: the same ones every time."""

from collections import Counter
from dataclasses import dataclass, replace

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.splits import HASH_RANGE, cut, stable_hash
from himalaya_adapter.streams.task import Limits, Task

from .data import OwnData

FEWEST_ITEMS = 8
HELD_OUT_SHARE = 0.1
FEWEST_HELD_OUT = 10  # but never more than a quarter of the items
MOST_SCORED = 50  # of the held-out items; scoring takes about as long as learning as many


@dataclass(frozen=True)
class HeldOut:
    """Which items of a task are held out: those whose hash with the seed, in [0, 1), is not above a threshold."""

    seed: int
    up_to: float = 0.0


def hold_out(data: OwnData, name: str, task: str, before: HeldOut) -> tuple[Task, HeldOut]:
    """Cut the items into those that are learnt and those that are scored, by a hash: the same ones every time.

    Prompts that occur with different answers are left out; so are repetitions, and rows are held out with all
    that have the same source.

    Args:
        data: The items.
        name: What they come from, for messages.
        task: The task's name.
        before: What has been held out of the task so far, and stays so; of a new task the seed alone.

    Returns:
        The task, and what is held out of it now.

    Raises:
        HimalayaError: Too few items.
    """
    kept = cut(data.items, Limits(), lambda source: "train")["train"]
    if len(kept) < FEWEST_ITEMS:
        raise HimalayaError(
            f"{name} gives {len(kept)} different items: at least {FEWEST_ITEMS} are needed, some of them to score"
        )
    place = {one.source: stable_hash(f"held out {before.seed} {one.source}") / HASH_RANGE for one in kept}
    ordered = sorted(kept, key=lambda item: place[item.source])
    share = sum(place[item.source] < HELD_OUT_SHARE for item in kept)
    count = max(share, min(FEWEST_HELD_OUT, len(kept) // 4))
    now = replace(before, up_to=max(before.up_to, place[ordered[count - 1].source]))
    held = [item for item in ordered if place[item.source] <= now.up_to]
    if len(held) == len(kept) and before.up_to:
        raise HimalayaError(f"all items of {name} are held out of task '{task}' to score it: give more rows to learn")
    if len(held) == len(kept):
        raise HimalayaError(f"{name} gives one conversation only: at least two are needed, one of them to score")
    repeated = Counter({"repeated or contradictory": len(data.items) - len(kept)})
    chosen = replace(data, left_out=data.left_out + repeated)
    return chosen.task(task, [item for item in kept if place[item.source] > now.up_to], held[:MOST_SCORED]), now
