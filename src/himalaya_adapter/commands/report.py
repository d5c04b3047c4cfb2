"""``himalaya report``."""

from pathlib import Path
from typing import Annotated

import typer

from himalaya_adapter.commands import Figures


def command(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run or of a search.")],
    figures: Figures = False,
) -> None:
    """Write the report of a run or a search anew."""
    from himalaya_adapter.report import write_run_report, write_search_report

    write = write_search_report if (folder / "trials.json").is_file() else write_run_report
    print(write(folder, figures=figures))
