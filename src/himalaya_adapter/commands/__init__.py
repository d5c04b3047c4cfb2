"""The commands of ``himalaya``, a file for each kind, and the arguments that several of them have.

A command is a function: its parameters are what can be typed, its docstring is what ``--help`` says of it.
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
Adapter = Annotated[str, typer.Argument(help="An adapter's folder, a run's or its release, or owner/name.")]
AsTask = Annotated[str, typer.Option(help="Answer as this task; auto: as the prompt says.")]
Prompt = Annotated[str | None, typer.Option(help=r"Template of the question: 'Ticket: {text}\nTeam:'.")]
Target = Annotated[str | None, typer.Option(help="Template of the answer: '{team}'.")]
Split = Annotated[str, typer.Option(help="Which split of a data set.")]
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
