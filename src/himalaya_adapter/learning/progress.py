"""How far a command is, and how long it still takes: a bar in a terminal or a notebook, else a line now and then."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 15.0
Advance = Callable[[int, int], None]


@contextmanager
def stage(what: str) -> Iterator[Advance]:
    """A stage of a command; call what it gives with the number done and the number of all."""
    console = Console(stderr=True)
    started = said = time.perf_counter()
    shown = console.is_terminal or console.is_jupyter
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        line = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            nonlocal said
            bar.update(line, completed=done, total=total)
            now = time.perf_counter()
            if not shown and now - said > SECONDS_BETWEEN_LINES and 0 < done < total:
                said = now
                left = (now - started) / done * (total - done)
                logger.info("%s: %d of %d, %.0f s left", what, done, total, left)

        yield advance
