"""The one exception type that a user can cause, and how any error of a user or a machine becomes one line."""

import difflib
import errno
import re
import sys
from collections.abc import Iterable

FEW = 12  # names that are all told; of more, the nearest
DISTRIBUTION = "himalaya-adapter"
# The extra of the distribution that brings a package.
EXTRAS = {
    **dict.fromkeys(("onnx", "onnx_ir", "onnxruntime", "onnxscript"), "deploy"),
    **dict.fromkeys(("datasets", "gguf", "hydra", "jinja2", "matplotlib", "optuna", "polib", "pyarrow"), "lab"),
    **dict.fromkeys(("rapidfuzz", "rouge_score", "sacrebleu"), "lab"),
    "bitsandbytes": "4bit",
    **dict.fromkeys(("fastapi", "openai", "uvicorn"), "serve"),
}
MENDS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "free some space, or choose another disk",
    errno.EACCES: "choose another place, or change its permissions",
    errno.EPERM: "choose another place, or change its permissions",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOLCK: "choose a results_dir on a disk that has locks, such as a local one",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "give a file in the place of this folder",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
}
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
    return HimalayaError(f"unknown {kind} '{name}'{suggestion}{f' (known: {_listed(names)})' if few else ''}")


def one_line(error: BaseException | str) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def told(error: BaseException) -> str | None:
    """The line for an error that a user or the machine has caused; ``None`` for a mistake of the program."""
    out_of_memory = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
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
    elif isinstance(error, MemoryError | out_of_memory):
        message = "out of memory: lower training.batch_size, evaluation.eval_batch_size or dataset.max_seq_length"
    else:
        return None
    return one_line(message)


def _missing(error: ImportError) -> str | None:
    """The package of an extra that is not installed; transformers names it in its message alone."""
    name = (error.name or "").partition(".")[0]
    return name if name in EXTRAS else next((one for one in EXTRAS if not name and one in str(error)), None)


def _of_the_machine(error: OSError) -> str:
    place = " and ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
    mend = MENDS.get(error.errno or 0)
    return (f"{place}: " if place else "") + (error.strerror or str(error)) + (f"; {mend}" if mend else "")


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
