"""``himalaya compare``."""

from pathlib import Path
from typing import Annotated

import typer

from himalaya_adapter.commands import Figures
from himalaya_adapter.names import check_name


def command(
    folder: Annotated[Path, typer.Argument(help="The folder of the runs, which a run calls results_dir.")],
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_ID]...", help="The runs (default: all that are finished).")
    ] = None,
    figures: Figures = False,
) -> None:
    """Compare finished runs of one stream."""
    from himalaya_adapter.report import finished_runs, write_comparison

    for run_id in run_ids or ():
        check_name(run_id, "run")
    print(write_comparison(folder, run_ids or finished_runs(folder), folder / "comparison", figures=figures))
