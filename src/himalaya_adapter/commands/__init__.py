"""The commands of ``himalaya``: one file each, a folder for commands of one kind.

A file ``commands/name.py`` with a function ``command`` is the command ``himalaya name``: its parameters are what can
be typed, its docstring is what ``--help`` says of it. A file that sets ``CONTINUES = True`` goes on from where it was
when it is typed again after an interruption.
Imports of the floors below stand inside the functions: each command loads only what it needs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

PACKAGED_RUNS = Path(__file__).parents[1] / "conf" / "run"


def _completed(incomplete: str) -> Iterator[str]:
    for path in sorted(PACKAGED_RUNS.glob("*.yaml")):
        if f"run={path.stem}".startswith(incomplete):
            yield f"run={path.stem}"


Overrides = Annotated[
    list[str],
    typer.Argument(
        metavar="KEY=VALUE",
        autocompletion=_completed,
        help="run=NAME or run=FILE.yaml, mode=trial|full, results_dir=FOLDER, overwrite=true, backbone=NAME, and any"
        " key of a run, such as training.learning_rate=2e-3",
    ),
]
Backbone = Annotated[str | None, typer.Option(help="Name or folder, where it is not the one that the adapter names.")]
