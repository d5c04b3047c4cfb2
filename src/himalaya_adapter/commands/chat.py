r"""``himalaya chat``."""

import sys
from typing import Annotated

import typer

from himalaya_adapter.commands import Backbone, typed

HELP = r"/task NAME switches (auto: as each prompt looks), /tasks lists, /quit ends; \n in a line is a line break"


def command(
    adapter: Annotated[str, typer.Argument(help="An adapter's folder, a run's, or owner/name.")],
    task: Annotated[str, typer.Option(help="Answer as this task; auto: as the prompt says.")] = "auto",
    backbone: Backbone = None,
    max_new_tokens: int = 128,
) -> None:
    """Answer line after line; the model is loaded once."""
    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.deploy.answering import AUTO
    from himalaya_adapter.errors import HimalayaError
    from himalaya_adapter.learning.asking import Conversation

    loaded = load_adapter(adapter, task=None if task == AUTO else task, backbone=backbone)
    conversation = Conversation(loaded, task)
    print(HELP, file=sys.stderr)
    while True:
        print(f"{conversation.task}> ", end="", file=sys.stderr, flush=True)
        line = typed(sys.stdin.readline)
        word, _, rest = line.strip().partition(" ")
        if not line or word == "/quit":
            return
        try:
            if word == "/tasks":
                print(", ".join(loaded.tasks))
            elif word == "/task":
                conversation = Conversation(loaded, rest.strip())
            elif word:
                conversation.ask(line.strip().replace("\\n", "\n"), max_new_tokens)
        except HimalayaError as error:
            print(error, file=sys.stderr)
