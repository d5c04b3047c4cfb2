"""``himalaya export``."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from himalaya_adapter.commands import Backbone
from himalaya_adapter.errors import HimalayaError

OPTIONS = {"bundle": ("precision",), "lora": (), "onnx": ("opset", "graph")}  # that only one format has


def command(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, its adapter or release folder, or a copy of one.")],
    form: Annotated[Literal["bundle", "lora", "onnx"], typer.Option("--format", help="What to write.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    task: Annotated[list[str] | None, typer.Option(help="A task to export (repeatable; default: all).")] = None,
    backbone: Backbone = None,
    opset: Annotated[
        int | None, typer.Option(min=18, max=23, help="ONNX opset of the graphs (onnx; default: 18).")
    ] = None,
    graph: Annotated[Literal["adapter", "model"] | None, typer.Option(help="Only this graph (onnx).")] = None,
    precision: Annotated[
        Literal["fp32", "int8", "int4"] | None, typer.Option(help="Of the base's weights (bundle; default: fp32).")
    ] = None,
) -> None:
    """Write a run's adapter as ONNX graphs, a bundle or plain LoRAs."""
    given = {"opset": opset, "graph": graph, "precision": precision}
    options: dict[str, Any] = {option: value for option, value in given.items() if value}
    for option in options:
        if option not in OPTIONS[form]:
            raise HimalayaError(f"--{option} says nothing to --format {form}: leave it out")
    options |= {"tasks": task or [], "backbone": backbone}
    if form == "lora":
        from himalaya_adapter.deploy.lora_export import export_lora

        print(*export_lora(adapter, output, **options), sep="\n")
    elif form == "bundle":
        from himalaya_adapter.deploy.bundle.writer import export_bundle

        print(export_bundle(adapter, output, **options))
    else:
        from himalaya_adapter.deploy.onnx.export import export_onnx

        for name, outputs in export_onnx(adapter, output, **options).items():
            largest = max(entry["relative"] for entry in outputs.values())
            print(f"{name}: largest relative difference from PyTorch {largest:.1e}")
        print(output)
