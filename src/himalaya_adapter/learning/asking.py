"""Questions in the form that a task was learnt in, and how well a file of them is answered."""

import string
import sys
from contextlib import nullcontext
from typing import Any

from transformers import TextStreamer

from himalaya_adapter.deploy.adapter_folder import LoadedAdapter
from himalaya_adapter.deploy.answering import AUTO, answer, check_request, choose_task
from himalaya_adapter.evaluation.batching import context_of
from himalaya_adapter.evaluation.scoring import TaskScore, evaluate_task
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.names import known_task
from himalaya_adapter.streams import Task
from himalaya_adapter.training.progress import stage

from .adapter_store import AdapterStore
from .data import Form, chat_prompt, refuse_control_tokens

ITEMS_AT_ONCE = 16


def question(form: Form, text: str) -> str:
    """A text in the place of the only column of a task's template; as it is if it is in that form already."""
    parts = list(string.Formatter().parse(form.prompt))
    columns = [column for _, column, _, _ in parts if column is not None]
    if len({*columns}) != 1:
        return text
    before, after = parts[0][0], parts[-1][0] if parts[-1][1] is None else ""
    asked = text.rstrip()
    if (before or after) and asked.startswith(before) and asked.endswith(after.rstrip()):
        return text
    return form.prompt.format_map({columns[0]: text.strip()}).rstrip()


class Conversation:
    """Questions to one adapter, one after another.

    Args:
        adapter: A loaded adapter.
        task: The task to answer as, or ``"auto"``: as each question looks.

    Raises:
        HimalayaError: A task that the adapter does not know.
    """

    def __init__(self, adapter: LoadedAdapter, task: str = AUTO) -> None:
        self.adapter = adapter
        self.task = known_task(task, adapter.tasks) if task != AUTO and adapter.tasks else task
        self.form = AdapterStore(adapter.folder).form(None if task == AUTO else self.task)
        self.spoken: list[tuple[str, str]] = []  # so far, for a task that was learnt from conversations

    def ask(self, text: str, max_new_tokens: int) -> str:
        """Answer, and print the answer word by word. On standard error stands which task answers, if that was open.

        Raises:
            HimalayaError: Nothing that can be answered, or a control token in a conversation; it counts as not said.
        """
        chat = self.form is not None and self.form.chat
        if chat:
            refuse_control_tokens(self.adapter.tokenizer, [text], "the question")
            spoken = [*self.spoken, ("user", text.strip())]
            prompt = chat_prompt(self.adapter.tokenizer, spoken)
        else:
            prompt = question(self.form, text) if self.form is not None else text
        check_request(prompt, max_new_tokens)
        chosen = choose_task(self.adapter, prompt, self.task)
        if chosen.confidence is not None:
            print(chosen, file=sys.stderr)
        streamer = TextStreamer(self.adapter.tokenizer, skip_prompt=True, skip_special_tokens=True)
        told = answer(self.adapter, prompt, max_new_tokens, streamer, chat=chat)
        if chat:
            self.spoken = [*spoken, ("assistant", told.strip())]
        return told


def score(model: Any, tokenizer: Any, task: Task, frozen: bool = False) -> TaskScore:
    """Score a model on a task's test items, as that task or without its adapter; shows how far it is."""
    if not frozen:
        continual(model).set_task(task.name)
    with stage(f"scoring {task.name}") as advance, model.disable_adapter() if frozen else nullcontext():
        return evaluate_task(
            model, tokenizer, task, batch_size=ITEMS_AT_ONCE, max_length=context_of(model), progress=advance
        )
