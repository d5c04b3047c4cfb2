"""How far something is, and how long it still takes: a bar in a terminal; elsewhere a line now and then."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 15.0
Advance = Callable[[int, int], None]


class OneBar:
    """Says how far one thing is, and how long it still takes by the speed of this process so far.

    Args:
        what: What is done.
        shown: Whether anything is said at all.
    """

    def __init__(self, what: str, *, shown: bool = True) -> None:
        console = Console(stderr=True)
        self.shown = shown
        self.drawn = shown and (console.is_terminal or console.is_jupyter)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        self.bar = Progress(
            *columns, console=console, transient=True, disable=not self.drawn, speed_estimate_period=math.inf
        )
        self.whole = self.bar.add_task(what, total=None)
        self.said = time.monotonic()

    @property
    def left(self) -> str:
        """The time left as the end of a sentence; nothing where that cannot be said."""
        seconds = self.bar.tasks[0].time_remaining
        return f", {timedelta(seconds=round(seconds))} left" if seconds else ""

    def move(self, done: float, total: float, what: str) -> None:
        """Move the bar; where there is none, say ``what`` now and then."""
        self.bar.update(self.whole, completed=done, total=total)
        self.bar.update(self.whole, description=what + self.left)
        if not self.drawn and time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self.say(what + self.left)

    def say(self, line: str) -> None:
        """Say something that stays."""
        self.said = time.monotonic()
        if self.drawn:
            self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif self.shown:
            logger.info(line)


class StreamProgress(OneBar):
    """Says where a stream is; the time left is that of learning and scoring.

    Args:
        tasks: Names of the tasks.
        items: Training items of each, by which their times compare.
        shown: False for all processes of a run but one.
    """

    def __init__(self, tasks: Sequence[str], items: Sequence[int], *, shown: bool) -> None:
        super().__init__("frozen model", shown=shown and logger.level <= logging.INFO)  # a search hushes its trials
        self.tasks, self.items = tasks, items

    def begin(self, index: int) -> None:
        """A task is about to be learnt."""
        self.say(f"{self._name(index)}: learning {self.items[index]} items")
        self._move(index, 0.0)

    def step(self, index: int, step: int, steps: int, loss: float) -> None:
        """An optimiser step of a task, counted from 1, is done."""
        self._move(index, step / steps, f": step {step} of {steps}, loss {loss:.3f}")

    def scored(self, index: int, row: Sequence[float | None]) -> None:
        """A task, and with it perhaps those before it, has been scored."""
        self._move(index, 1.0)
        known = [score for score in row if score is not None]
        seen = f", mean of {len(known)} tasks {sum(known) / len(known):.3f}" if len(known) > 1 else ""
        self.say(f"{self._name(index)}: score {row[index]:.3f}{seen}{self.left}")

    def _name(self, index: int) -> str:
        return f"task {index + 1} of {len(self.tasks)}, {self.tasks[index]}"

    def _move(self, index: int, share: float, told: str = "") -> None:
        done = sum(self.items[:index]) + share * self.items[index]
        self.move(done, sum(self.items) or 1, self._name(index) + told)


@contextmanager
def stage(what: str) -> Iterator[Advance]:
    """A stage of a command; call what it gives with the number done and the number of all."""
    one = OneBar(what)
    with one.bar:
        yield lambda done, total: one.move(done, total, f"{what}: {done} of {total}")
