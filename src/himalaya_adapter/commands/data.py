"""List, fetch or show the data of a stream."""

from typing import Annotated

import typer

EXAMPLES = 3
app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.command("list")
def list_tasks(stream: Annotated[str, typer.Argument(help="A stream's name or its YAML file.")]) -> None:
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


@app.command()
def fetch(stream: str) -> None:
    """Bring a stream's data into the cache."""
    from himalaya_adapter.streams.catalogue import fetch_stream
    from himalaya_adapter.streams.plain_text import held_out_text

    held_out_text()  # every run measures its base model's drift on it
    for path in fetch_stream(stream).values():
        print(path)


@app.command()
def show(stream: str, task: str) -> None:
    """The card of one task: its source, licence, template, splits and examples."""
    from collections import Counter

    from himalaya_adapter.evaluation.text_metrics import metric_by_name
    from himalaya_adapter.streams.catalogue import load_task, origin_of, read_definition

    loaded = load_task(stream, task)
    spec = loaded.spec
    metric_by_name(spec.metric)  # a run would refuse an unknown one
    origin, licence = origin_of(spec, read_definition(stream))
    lines = [
        f"{spec.name}: {spec.description}",
        f"kind {spec.kind}, language {spec.language}, metric {spec.metric}",
        f"source {origin}",
        f"licence {licence}",
        f"template {spec.template!r} -> {spec.target!r}",
    ]
    for split, digest in loaded.hashes.items():
        counts = Counter(item.target for item in loaded.split(split))
        labels = f" ({', '.join(f'{label} {counts[label]}' for label in spec.labels)})" if spec.labels else ""
        lines.append(f"{split}: {len(loaded.split(split))} items, sha256 {digest[:16]}{labels}")
    lines += [f"left out: {count} items, {reason}" for reason, count in loaded.skipped.items()]
    lines += [f"example: {item.prompt!r} -> {item.target!r}" for item in loaded.train[:EXAMPLES]]
    print("\n".join(lines))
