"""``himalaya generate``."""

import sys
from typing import Annotated

import typer

from himalaya_adapter.commands import Backbone, typed


def command(
    adapter: Annotated[str, typer.Argument(help="An adapter's folder, a run's or its release, or owner/name.")],
    prompt: Annotated[str, typer.Argument(help="The text; '-' reads standard input.")],
    task: Annotated[str, typer.Option(help="Answer as this task; auto: as the prompt says.")] = "auto",
    backbone: Backbone = None,
    max_new_tokens: int = 64,
) -> None:
    """Answer a prompt, word by word, in the form that the task was learnt in."""
    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.deploy.answering import AUTO, check_request
    from himalaya_adapter.learning.asking import Conversation

    text = typed(sys.stdin.read) if prompt == "-" else prompt
    check_request(text, max_new_tokens)  # before a model is loaded for nothing
    loaded = load_adapter(adapter, task=None if task == AUTO else task, backbone=backbone)
    Conversation(loaded, task).ask(text, max_new_tokens)
