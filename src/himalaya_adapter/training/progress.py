"""How far something is, and how long it still takes: a bar in a terminal; elsewhere a line now and then."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

logger = logging.getLogger(__name__)
EVERY = 25  # steps of a task from one line to the next
SECONDS_BETWEEN_LINES = 15.0
Advance = Callable[[int, int], None]


class TimeLeft:
    """How long something still takes, by how fast it has been since this was made.

    Args:
        done: What was done by then.
    """

    def __init__(self, done: float = 0.0) -> None:
        self.started, self.done = time.monotonic(), done

    def __call__(self, done: float, whole: float) -> str:
        """The time left as the end of a sentence; nothing where that cannot be said."""
        if not self.done < done < whole:
            return ""
        seconds = (time.monotonic() - self.started) * (whole - done) / (done - self.done)
        return f", {timedelta(seconds=round(seconds))} left"


class StreamProgress:
    """Says where a stream is and how long it still takes, by the speed of this process so far, scoring included.

    Args:
        tasks: Names of the tasks.
        items: Training items of each, by which their times compare.
        shown: False for all processes of a run but one.
    """

    def __init__(self, tasks: Sequence[str], items: Sequence[int], *, shown: bool) -> None:
        self.tasks, self.items = tasks, items
        self.shown = shown and logger.level <= logging.INFO  # a search hushes its trials
        self.in_terminal = sys.stderr.isatty()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        self.bar = Progress(*columns, console=Console(stderr=True), disable=not (self.shown and self.in_terminal))
        self.whole = self.bar.add_task("frozen model", total=sum(items) or None)
        self.left: TimeLeft | None = None

    def begin(self, index: int) -> None:
        """A task is about to be learnt."""
        if self.left is None:
            self.left = TimeLeft(sum(self.items[:index]))
        self._say(f"{self._name(index)}: learning {self.items[index]} items")

    def step(self, index: int, step: int, steps: int, loss: float) -> None:
        """An optimiser step of a task, counted from 1, is done."""
        left = self._move(index, step / steps)
        if step % EVERY == 0 and not self.in_terminal:
            self._say(f"{self._name(index)}: step {step} of {steps}, loss {loss:.3f}{left}")

    def scored(self, index: int, row: Sequence[float | None]) -> None:
        """A task, and with it perhaps those before it, has been scored."""
        left = self._move(index, 1.0)
        known = [score for score in row if score is not None]
        seen = f", mean of {len(known)} tasks {sum(known) / len(known):.3f}" if len(known) > 1 else ""
        self._say(f"{self._name(index)}: score {row[index]:.3f}{seen}{left}")

    def _name(self, index: int) -> str:
        return f"task {index + 1} of {len(self.tasks)}, {self.tasks[index]}"

    def _move(self, index: int, share: float) -> str:
        """Move the bar to a share of a task; returns the time left as the end of a sentence."""
        done = sum(self.items[:index]) + share * self.items[index]
        left = self.left(done, sum(self.items)) if self.left else ""
        self.bar.update(self.whole, completed=done, description=self._name(index) + left)
        return left

    def _say(self, line: str) -> None:
        if self.shown and (self.in_terminal or not logger.hasHandlers()):  # a notebook sets up no logging
            self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif self.shown:
            logger.info(line)


@contextmanager
def stage(what: str) -> Iterator[Advance]:
    """A stage of a command; call what it gives with the number done and the number of all."""
    console, left, said = Console(stderr=True), TimeLeft(), time.monotonic()
    shown = console.is_terminal or console.is_jupyter
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        line = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            nonlocal said
            told = left(done, total)
            bar.update(line, completed=done, total=total, description=what + told)
            if told and not shown and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                logger.info("%s: %d of %d%s", what, done, total, told)

        yield advance
