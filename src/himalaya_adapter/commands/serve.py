"""``himalaya serve``."""

from pathlib import Path
from typing import Annotated

import typer

from himalaya_adapter.commands import Backbone


def command(
    adapter: Annotated[str, typer.Argument(help="An adapter's folder, a run's, or owner/name.")],
    name: Annotated[str | None, typer.Option(help="What requests call it; default: the folder's name.")] = None,
    backbone: Backbone = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
) -> None:
    """Answer OpenAI-compatible requests: model NAME:TASK, or NAME to leave the task to the prompt."""
    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.learning.serving import listen, serve

    with listen(host, port) as at:  # before a model is loaded for nothing
        loaded = load_adapter(adapter, backbone=backbone)
        base = name or Path(adapter).resolve().name
        models = ", ".join([base, *(f"{base}:{task}" for task in loaded.tasks)])
        print(
            f"http://{host}:{at.getsockname()[1]}/v1 answers as {models}; who reaches this address can ask", flush=True
        )
        serve(loaded, base, at)
