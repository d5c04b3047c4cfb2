"""``himalaya forget``."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    task: Annotated[str, typer.Argument(help="The task to remove.")],
) -> None:
    """Remove a task; all others answer bit for bit as before."""
    from himalaya_adapter.learning.adapter_store import AdapterStore, room

    store = AdapterStore(adapter)
    with store.locked():
        store.forget(task)
    known = ", ".join(store.adapter.tasks.known()) or "nothing"
    print(f"{adapter} has forgotten {task}; it knows {known}, with room for about {room(store.adapter)} more tasks")
