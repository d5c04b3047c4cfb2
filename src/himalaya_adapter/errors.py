"""The one exception type that a user can cause, and how any error of a user or a machine becomes one line."""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

FEW = 12  # names that are all told; of more, the nearest
DISTRIBUTION = "himalaya-adapter"
# The extra of the distribution that brings a package.
EXTRAS = {
    **dict.fromkeys(("onnx", "onnx_ir", "onnxruntime", "onnxscript"), "deploy"),
    **dict.fromkeys(("datasets", "gguf", "hydra", "jinja2", "matplotlib", "optuna", "polib", "pyarrow"), "lab"),
    **dict.fromkeys(("rapidfuzz", "sacrebleu"), "lab"),
    "bitsandbytes": "4bit",
    **dict.fromkeys(("fastapi", "openai", "uvicorn"), "serve"),
}
MENDS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or choose another disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a place that can be written"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "check the path"),
    errno.EISDIR: "give a file in the place of this folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOLCK: "choose a results_dir on a disk that has locks, such as a local one",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
}
OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as safetensors tells it


class HimalayaError(ValueError):
    """A mistake in the input, told in one line: what was wrong, where, and what would be right.

    The command line prints the message without a traceback and exits with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> HimalayaError:
    """Build the error for a name that is not known, with those that would have been right: all, or the nearest three.

    Args:
        kind: What was looked up, for example ``"task"``.
        name: The name that was asked for.
        known: All names that would have been right.
    """
    names = sorted(set(known))
    few = len(names) <= FEW
    near = difflib.get_close_matches(name, names, n=1 if few else 3, cutoff=0.0)
    suggestion = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    listed = f" (known: {', '.join(names) or 'none'})" if few else ""
    return HimalayaError(f"unknown {kind} '{name}'{suggestion}{listed}")


def one_line(error: BaseException | str) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def told(error: BaseException) -> str | None:
    """The line for an error that a user or the machine has caused; ``None`` for a mistake of the program."""
    found = OS_ERROR.search(str(error))
    if isinstance(error, HimalayaError):
        message = str(error)
    elif isinstance(error, ImportError) and (package := _missing(error)):
        message = f"{package} is missing: pip install '{DISTRIBUTION}[{EXTRAS[package]}]'"
    elif isinstance(error, OSError):
        message = _of_the_machine(error)
    elif type(error).__name__ == "SafetensorError" and found:
        message = _of_the_machine(OSError(int(found[1]), str(error)))
    elif type(error).__name__ == "RuntimeError" and "PytorchStreamWriter failed" in str(error):
        message = "a checkpoint cannot be written: free some space"  # torch does not say why, nor where
    elif isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib, before Python 3.13
        message = f"{error}: check the path"
    elif isinstance(error, MemoryError) or _out_of_memory(error):
        message = "out of memory: lower training.batch_size, evaluation.eval_batch_size or dataset.max_seq_length"
    else:
        return None
    return one_line(message)


@contextmanager
def out_of_memory_told(remedy: str) -> Iterator[None]:
    """Say in one line what helps when there is too little memory for what is done inside.

    Raises:
        HimalayaError: There is; the message ends with ``remedy``.
    """
    try:
        yield
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        raise HimalayaError(f"out of memory ({str(error).splitlines()[0]}): {remedy}") from error


def _out_of_memory(error: BaseException) -> bool:
    """Whether it is torch's ``OutOfMemoryError``, or what torch raises on a CPU."""
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def _missing(error: ImportError) -> str | None:
    """The package of an extra that is not installed; transformers names it in its message alone."""
    name = (error.name or "").partition(".")[0]
    return name if name in EXTRAS else next((one for one in EXTRAS if not name and one in str(error)), None)


def _of_the_machine(error: OSError) -> str:
    place = " and ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
    mend = MENDS.get(error.errno or 0)
    return (f"{place}: " if place else "") + (error.strerror or str(error)) + (f"; {mend}" if mend else "")
