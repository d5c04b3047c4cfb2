"""The command ``himalaya``: which commands there are, and how a command ends."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module, metadata
from pkgutil import iter_modules
from types import ModuleType
from typing import Annotated, Any

import typer

from himalaya_adapter import commands
from himalaya_adapter.errors import DISTRIBUTION, HimalayaError, told

USER_ERROR = 2
INTERRUPTED = 130
GOES_ON = "; the same command goes on from here"
REPORT = "a mistake of the program: please report it with your command and what stands below"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A user's mistake is one line on standard error and status 2.

    Args:
        arguments: The words after ``himalaya``; ``None`` takes those of this process.
    """
    try:
        return application()(arguments, prog_name="himalaya", standalone_mode=False) or 0
    except typer.TyperException as error:  # what cannot be parsed
        error.show()  # type: ignore[attr-defined]
        return USER_ERROR


def application() -> typer.Typer:
    """All commands."""
    app = _group(commands)
    app.callback(help=himalaya.__doc__)(himalaya)
    return app


def _group(package: ModuleType) -> typer.Typer:
    """The commands of a package: its modules, and its packages as groups of commands."""
    group = typer.Typer(
        help=package.__doc__, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    for found in iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{found.name}")
        if found.ispkg:
            group.add_typer(_group(module), name=found.name)
        else:
            group.command(found.name)(_ending(module.command, getattr(module, "CONTINUES", False)))
    return group


def _print_version(asked: bool) -> None:
    if asked:
        print(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


def himalaya(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Continual learning of a long stream of tasks with one tiny adapter of constant size."""


def _ending(command: Callable[..., None], continues: bool = False) -> Callable[..., int]:
    """A command that ends with an exit status, whatever happens."""

    @wraps(command)
    def ended(**arguments: Any) -> int:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        for noisy in ("httpx", "absl", "datasets", "transformers", "onnx_ir", "onnxscript"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        try:
            command(**arguments)
        except KeyboardInterrupt:
            print(f"himalaya: interrupted{GOES_ON if continues else ''}", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has no reader
            return USER_ERROR
        except Exception as error:
            line = told(error)
            if line is None:
                print(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}: {REPORT}", file=sys.stderr)
                raise
            of_machine = continues and not isinstance(error, HimalayaError)
            print(f"himalaya: {line}{GOES_ON if of_machine else ''}", file=sys.stderr)
            return USER_ERROR
        return 0

    return ended


if __name__ == "__main__":
    sys.exit(main())
