"""``himalaya latency``."""

from pathlib import Path
from typing import Annotated

import typer

from himalaya_adapter.commands import Backbone
from himalaya_adapter.errors import HimalayaError

LAYER = "NousResearch/Llama-2-7b-hf"


def command(
    adapter: Annotated[Path | None, typer.Argument(help="A run's folder: its whole backbone is measured.")] = None,
    backbone: Backbone = None,
    shape: Annotated[
        str | None, typer.Option(metavar="BACKBONE", help="Measure one decoder layer of this shape (default).")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the base's weights, with commas between several: fp32,int8,int4.")
    ] = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Default: one for each CPU.")] = None,
    seconds: Annotated[float, typer.Option(help="For each phase and precision.")] = 20.0,
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, metavar="FILE.json", help="Write all that was measured.")
    ] = None,
) -> None:
    """The adapter's overhead in ONNX Runtime on this machine."""
    from himalaya_adapter.deploy.bundle.runner.latency import told
    from himalaya_adapter.deploy.latency import measure_latency
    from himalaya_adapter.storage import write_json

    if adapter is not None and shape is not None:
        raise HimalayaError("give either the folder of an ADAPTER (its whole backbone) or --shape (one layer)")
    if adapter is None and backbone is not None:
        raise HimalayaError("--backbone belongs to an ADAPTER; a layer's shape is named by --shape")
    result = measure_latency(adapter, shape or LAYER, precision.split(","), threads, seconds, backbone)
    print(result["subject"])
    for line in told(result["device"], result["measurements"]):
        print(line)
    if output is not None:
        write_json(output, result)
        print(output)
