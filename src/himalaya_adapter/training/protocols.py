"""What a run's adapter learns when: task after task, or one of the bounds that such a stream is compared with."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.method_options import method_of
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.methods.continual import ContinualModel
from himalaya_adapter.streams import Task
from himalaya_adapter.training.run_store import BEFORE

SEQUENTIAL, INDEPENDENT, JOINT, FROZEN = "sequential", "independent", "joint", "frozen"
REPLAY, REPLAYED = "replay", 0.01  # share of a task's training items that is kept


def protocol_of(run: RunConfig) -> str:
    """The run's protocol: a method that keeps an adapter per task learns as the bound `independent` does."""
    return INDEPENDENT if run.model.adapter.per_task else run.training.protocol


def tasks_learnt_at(protocol: str, index: int, tasks: Sequence[Task]) -> Sequence[Task]:
    """The tasks whose items are trained on at position ``index`` of the stream.

    The one that stands there, with ``replay`` together with the items that are kept of earlier ones; with ``joint``
    all of them at the first position, mixed, and none afterwards; with ``frozen`` none ever.
    """
    if protocol == REPLAY:
        return *_kept(tasks[:index], len(tasks[index].train)), tasks[index]
    if protocol == JOINT:
        return tasks if index == 0 else ()
    return () if protocol == FROZEN else (tasks[index],)


def _kept(tasks: Sequence[Task], items: int) -> list[Task]:
    """The items kept of earlier tasks, repeated until together they are as many as the new ones.

    Half of what is learnt is then old, as in experience replay (Rolnick et al. 2019, arXiv:1811.11682).
    """
    kept = []
    for task in tasks:
        few = task.train[: math.ceil(REPLAYED * len(task.train))]
        kept.append(replace(task, train=tuple(islice(cycle(few), math.ceil(items / len(tasks))))))
    return kept


def row_of_score(protocol: str, row: int, task: int) -> int | str:
    """The row of the matrix where the score of ``task`` after task ``row`` is measured; it cannot differ from it.

    With one adapter that learns on, it is ``row`` itself. An adapter that is a task's own, or has learnt all tasks at
    once, gives the task the same score ever after; a frozen model gives the one before training.
    """
    if protocol == FROZEN:
        return BEFORE
    return row if protocol in (SEQUENTIAL, REPLAY) else task


def adapters_stored(protocol: str, index: int) -> int:
    """How many adapters of one size must be kept after task ``index`` to answer all tasks so far."""
    return {FROZEN: 0, INDEPENDENT: index + 1}.get(protocol, 1)


def check_protocol(run: RunConfig, method: ContinualModel) -> None:
    """Refuse to mix tasks for a method that learns each under its own name.

    Raises:
        HimalayaError: As said.
    """
    protocol = run.training.protocol
    if protocol in (JOINT, REPLAY) and method.separates_tasks:
        raise HimalayaError(
            f"training.protocol={protocol} of run '{run.run_id}': {method_of(run)} learns each task under its name "
            "and cannot mix them; expected sequential, independent or frozen, or another method such as LORA"
        )
