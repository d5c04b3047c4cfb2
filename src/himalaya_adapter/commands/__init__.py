"""The commands of ``himalaya``: one file each, a folder for commands of one kind.

A file ``commands/name.py`` with a function ``command`` is the command ``himalaya name``: its parameters are what can
be typed, its docstring is what ``--help`` says of it. A file that sets ``CONTINUES = True`` goes on from where it was
when it is typed again after an interruption.
Imports of the floors below stand inside the functions: each command loads only what it needs.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from himalaya_adapter.errors import HimalayaError

Overrides = Annotated[
    list[str],
    typer.Argument(
        metavar="KEY=VALUE",
        help="run=NAME or run=FILE.yaml, which is needed; results_dir=FOLDER (outputs), mode=trial|full (full),"
        " overwrite=true, backbone=NAME, and any key of a run, such as training.learning_rate=2e-3. What there is:"
        " himalaya list runs, himalaya list keys.",
    ),
]
Figures = Annotated[bool, typer.Option("--figures", help="Also write every figure as PNG and PDF, for papers.")]
Backbone = Annotated[str | None, typer.Option(help="Name or folder, where it is not the one that the adapter names.")]


def typed(read: Callable[[], str]) -> str:
    """What ``read`` (``sys.stdin.read`` or ``readline``) gives.

    Raises:
        HimalayaError: It is no text.
    """
    try:
        return read()
    except UnicodeDecodeError as error:
        raise HimalayaError("standard input holds something else than text in UTF-8") from error


def templates_of(prompt: str | None, target: str | None) -> tuple[str, str] | None:
    """The templates of question and answer as they were typed, ``\\n`` for a line break.

    Raises:
        HimalayaError: Only one of them.
    """
    if prompt is None and target is None:
        return None
    if prompt is None or target is None:
        raise HimalayaError("--prompt and --target belong together: a template of the question, and of the answer")
    return prompt.replace("\\n", "\n"), target.replace("\\n", "\n")
