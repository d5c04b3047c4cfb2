"""``himalaya demo``."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(help="Where the files of the tasks, the adapter and the report go.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of a task.")] = None,
    items: Annotated[int | None, typer.Option(min=8, help="Items of a task.")] = None,
) -> None:
    """Learn three tasks one after another with HIMALAYA and with one LoRA, and see what each still knows."""
    from himalaya_adapter.learning.demo import ITEMS, STEPS, print_result, run_demo
    from himalaya_adapter.report.demo_page import write_demo_report

    result = run_demo(folder, steps=steps or STEPS, items=items or ITEMS)
    print_result(result)
    print(f"The report is here: {write_demo_report(result, folder)}")
