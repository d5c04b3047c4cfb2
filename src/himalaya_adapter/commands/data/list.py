"""``himalaya data list``."""

from typing import Annotated

import typer


def command(stream: Annotated[str, typer.Argument(help="A stream's name or its YAML file.")]) -> None:
    """The tasks of a stream, and whether its archives are in the cache."""
    from rich.console import Console
    from rich.table import Table

    from himalaya_adapter.packages import archive_path
    from himalaya_adapter.streams.catalogue import read_definition

    definition = read_definition(stream)
    table = Table("task", "kind", "language", "metric", "what it asks", title=f"{stream}: {definition.description}")
    for spec in definition.tasks:
        table.add_row(spec.name, spec.kind, spec.language, spec.metric, spec.description)
    console = Console(markup=False, emoji=False)  # [x] and :x: in a text are its own
    console.print(table)
    for archive in definition.used_archives().values():
        state = "cached" if archive_path(archive.requirement).is_file() else "not fetched"
        console.print(f"{archive.requirement} ({archive.licence}): {state}", highlight=False)
