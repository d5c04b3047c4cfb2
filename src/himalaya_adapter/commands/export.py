"""``himalaya export``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from himalaya_adapter.commands import Backbone
from himalaya_adapter.errors import HimalayaError


class Graph(StrEnum):
    """A graph of an ONNX export."""

    ADAPTER = "adapter"
    MODEL = "model"


# The options of each format beside a task.
OPTIONS = {"bundle": ("backbone", "precision"), "lora": ("backbone",), "onnx": ("backbone", "opset", "graphs")}


def command(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, its adapter or release folder, or a copy of one.")],
    form: Annotated[Literal["bundle", "lora", "onnx"], typer.Option("--format", help="What to write.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    task: Annotated[list[str] | None, typer.Option(help="A task to export (repeatable; default: all).")] = None,
    backbone: Backbone = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset of the graphs (onnx; default: 18).")] = None,
    graph: Annotated[list[Graph] | None, typer.Option(help="Only this graph (onnx; repeatable).")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the base's weights: fp32, int8 or int4 (bundle; default: fp32).")
    ] = None,
) -> None:
    """Write a run's adapter as ONNX graphs, a bundle or plain LoRAs."""
    given = {"backbone": backbone, "opset": opset, "graphs": graph, "precision": precision}
    options = {option: value for option, value in given.items() if value}
    for option in options:
        if option not in OPTIONS[form]:
            raise HimalayaError(f"--{option.removesuffix('s')} says nothing to --format {form}: leave it out")
    write = {"bundle": _bundle, "lora": _lora, "onnx": _onnx}[form]
    write(adapter, output, task or [], options)


def _lora(adapter: Path, output: Path, tasks: list[str], options: dict[str, Any]) -> None:
    from himalaya_adapter.deploy.lora_export import export_lora

    for folder in export_lora(adapter, output, tasks, **options):
        print(folder)


def _onnx(adapter: Path, output: Path, tasks: list[str], options: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from himalaya_adapter.deploy.onnx import export_onnx

    parity = export_onnx(adapter, output, tasks=tasks, **options)
    table = Table("graph", "output", "difference from PyTorch", "of")
    for name, outputs in parity.items():
        for of, entry in outputs.items():
            table.add_row(name, of, f"{entry['max_abs']:.1e}", f"{entry['largest']:.3g}")
    Console().print(table)
    print(output)


def _bundle(adapter: Path, output: Path, tasks: list[str], options: dict[str, Any]) -> None:
    from himalaya_adapter.deploy.bundle.writer import export_bundle

    print(export_bundle(adapter, output, tasks=tasks, **options))
