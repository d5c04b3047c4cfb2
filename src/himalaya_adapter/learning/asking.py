"""Questions in the form that a task was learnt in, and how well a file of them is answered."""

import logging
import sys
from contextlib import nullcontext
from typing import Any

from transformers import TextStreamer

from himalaya_adapter.deploy.adapter_folder import LoadedAdapter
from himalaya_adapter.deploy.answering import AUTO, answer, check_request, encoded
from himalaya_adapter.deploy.bundle.runner.question import question
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import context_of
from himalaya_adapter.evaluation.scoring import TaskScore, evaluate_task
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.names import known_task
from himalaya_adapter.streams import Task
from himalaya_adapter.training.progress import stage

from .adapter_store import AdapterStore
from .data import chat_prompt, refuse_control_tokens

logger = logging.getLogger(__name__)
ITEMS_AT_ONCE = 16


class Conversation:
    """Questions to one adapter, one after another.

    Args:
        adapter: A loaded adapter.
        task: The task to answer as, or ``"auto"``: as each question looks.

    Raises:
        HimalayaError: A task that the adapter has not learnt, or ``"auto"`` for a method that switches between tasks
            and cannot tell one from its prompt.
    """

    def __init__(self, adapter: LoadedAdapter, task: str = AUTO) -> None:
        self.adapter, self.method, known = adapter, continual(adapter.model), adapter.tasks
        self.task = known_task(task, known) if task != AUTO and known else task
        self.form = AdapterStore(adapter.folder).form(None if task == AUTO else self.task)
        self.spoken: list[tuple[str, str]] = []  # so far, for a task that was learnt from conversations
        kind = adapter.model.active_peft_config.peft_type.value
        if not self.method.switches_tasks:
            if task != AUTO:
                logger.warning("an adapter of %s answers alike for all tasks: '%s' changes nothing", kind, task)
        elif task == AUTO and not self.method.recognises_tasks:
            raise HimalayaError(
                f"{kind} cannot tell a task from its prompt: name one with --task ({', '.join(known)})"
            )
        elif task != AUTO and not known and not self.method.remembers_task(task):
            logger.warning("the adapter has seen no prompts of a task '%s': it answers as an untrained one", task)

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
            prompt = question(self.form.prompt, text) if self.form is not None else text
        check_request(prompt, max_new_tokens)
        self._choose_task(prompt)
        streamer = TextStreamer(self.adapter.tokenizer, skip_prompt=True, skip_special_tokens=True)
        told = answer(self.adapter, prompt, max_new_tokens, streamer, chat=chat)
        if chat:
            self.spoken = [*spoken, ("assistant", told.strip())]
        return told

    def _choose_task(self, prompt: str) -> None:
        """Switch the adapter to the task that was named, or that the prompt looks like; say which in that case."""
        if not self.method.switches_tasks:
            return
        if self.task != AUTO:
            self.method.set_task(self.task)
            return
        tokens = encoded(self.adapter, prompt, context_of(self.adapter.model))
        ((name, confidence),) = self.method.infer_task(tokens, self.adapter.tasks)
        if confidence == 0:
            raise HimalayaError("the adapter has not learnt to tell tasks from prompts: name one with --task")
        self.method.set_task(name)  # without a name: as the prompt says, each time
        told = f"task {name or 'without a name'}, confidence {confidence:.2f}"
        if name is None and self.method.tasks:
            told = f"the prompt looks like no task that is known ({confidence:.2f} of 1): the frozen model answers"
        print(told, file=sys.stderr)


def score(model: Any, tokenizer: Any, task: Task, frozen: bool = False) -> TaskScore:
    """Score a model on a task's test items, as that task or without its adapter; shows how far it is."""
    if not frozen:
        continual(model).set_task(task.name)
    with stage(f"scoring {task.name}") as advance, model.disable_adapter() if frozen else nullcontext():
        return evaluate_task(
            model, tokenizer, task, batch_size=ITEMS_AT_ONCE, max_length=context_of(model), progress=advance
        )
