"""``himalaya latency``."""

from pathlib import Path
from typing import Annotated

import typer

from himalaya_adapter.commands import Backbone
from himalaya_adapter.errors import HimalayaError


def command(
    adapter: Annotated[Path | None, typer.Argument(help="A run's folder: its whole backbone is measured.")] = None,
    backbone: Backbone = None,
    shape: Annotated[
        str | None, typer.Option(metavar="BACKBONE", help="Measure one decoder layer of this shape (default).")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the base's weights, with commas between several: fp32,int8,int4.")
    ] = "fp32",
    threads: Annotated[int | None, typer.Option(help="Default: one for each CPU.")] = None,
    seconds: Annotated[float, typer.Option(help="For each phase and precision.")] = 20.0,
    output: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write all that was measured.")] = None,
) -> None:
    """The adapter's overhead in ONNX Runtime on this machine."""
    from rich.console import Console
    from rich.table import Table

    from himalaya_adapter.deploy import latency_tables as tables
    from himalaya_adapter.deploy.latency import measure_latency
    from himalaya_adapter.storage import write_json

    if adapter is not None and shape is not None:
        raise HimalayaError("give either the folder of an ADAPTER (its whole backbone) or --shape (one layer)")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise HimalayaError(f"--output {output}: expected a file in a folder that is there")
    if adapter is None and backbone is not None:
        raise HimalayaError("--backbone belongs to an ADAPTER; a layer's shape is named by --shape")
    result = measure_latency(adapter, shape or "llama-2-7b", precision.split(","), threads, seconds, backbone)
    console = Console()
    console.print(f"{result['subject']}. {tables.device_line(result)}", highlight=False)
    shown = {"overhead": (tables.OVERHEAD_HEADER, tables.overhead_rows(result))}
    for name in result["graphs"]:
        shown[f"where the time goes, {name}"] = (tables.OPERATOR_HEADER, tables.operator_rows(result, name))
    for title, (header, rows) in shown.items():
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if output is not None:
        write_json(output, result)
        print(output)
