"""The command ``himalaya``: which commands there are, and how a command ends."""

import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from himalaya_adapter.commands import adapters, configs, data, runs
from himalaya_adapter.errors import DISTRIBUTION, HimalayaError, told

USER_ERROR = 2
INTERRUPTED = 130
CONTINUED = ("run", "search", "sweep", "learn")  # they go on from where they were when they are typed again
GOES_ON = "; the same command goes on from here"
REPORT = "a mistake of the program: please report it with your command and what stands below"

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(adapters.app)
app.add_typer(runs.app)
app.add_typer(data.app, name="data")
app.add_typer(configs.app, name="configs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A user's mistake is one line on standard error and status 2.

    Args:
        arguments: The words after ``himalaya``; ``None`` takes those of this process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    goes_on = GOES_ON if words and words[0] in CONTINUED else ""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "absl", "datasets", "transformers", "onnx_ir", "onnxscript"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        status = app(words, prog_name="himalaya", standalone_mode=False) or 0
    except typer.TyperException as error:  # what cannot be parsed
        error.show()  # type: ignore[attr-defined]
        return USER_ERROR
    except Exception as error:
        line = told(error)
        if line is None:
            print(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}: {REPORT}", file=sys.stderr)
            raise
        print(f"himalaya: {line}{'' if isinstance(error, HimalayaError) else goes_on}", file=sys.stderr)
        return USER_ERROR
    if status == INTERRUPTED:
        print(f"himalaya: interrupted{goes_on}", file=sys.stderr)
    return int(status)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def himalaya(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Continual learning of a long stream of tasks with one tiny adapter of constant size."""


if __name__ == "__main__":
    sys.exit(main())
