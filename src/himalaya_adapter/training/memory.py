"""How much memory a process has held, and what is said when there is too little."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from himalaya_adapter.errors import HimalayaError

OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)


@contextmanager
def out_of_memory_told(remedy: str) -> Iterator[None]:
    """Say in one line what helps when there is too little memory for what is done inside.

    Raises:
        HimalayaError: There is; the message ends with ``remedy``.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not OUT_OF_MEMORY.search(str(error)):
            raise
        raise HimalayaError(f"out of memory ({str(error).splitlines()[0]}): {remedy}") from error


def peak_memory_bytes() -> int:
    """The most memory this process has held: on the accelerator if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
