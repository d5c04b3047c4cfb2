"""``himalaya generate``."""

import sys
from typing import Annotated

import typer

from himalaya_adapter.commands import Backbone
from himalaya_adapter.errors import HimalayaError


def command(
    adapter: Annotated[
        str, typer.Argument(help="A run's folder, its adapter or release folder, a copy of one, or owner/name.")
    ],
    prompt: Annotated[str, typer.Argument(help="The text; '-' reads standard input.")],
    task: Annotated[str, typer.Option(help="Answer as this task; auto: as the prompt says.")] = "auto",
    backbone: Backbone = None,
    max_new_tokens: int = 64,
) -> None:
    """Answer a prompt with a run's adapter or its release, word by word."""
    from transformers import TextStreamer

    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.deploy.answering import AUTO, answer, check_request, choose_task

    try:
        text = sys.stdin.read() if prompt == "-" else prompt
    except UnicodeDecodeError as error:
        raise HimalayaError("standard input holds something else than text in UTF-8") from error
    check_request(text, max_new_tokens)  # before a model is loaded for nothing
    loaded = load_adapter(adapter, task=None if task == AUTO else task, backbone=backbone)
    chosen = choose_task(loaded, text, task)
    if chosen.confidence is not None:
        print(f"task {chosen.name or 'without a name'}, confidence {chosen.confidence:.2f}", file=sys.stderr)
    streamer = TextStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer(loaded, text, max_new_tokens, streamer)
