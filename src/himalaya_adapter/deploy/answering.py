"""Answers of a loaded adapter, token by token, as a task that is named or that the prompt looks like."""

import logging
import re
from dataclasses import dataclass

import torch
from transformers.generation.streamers import BaseStreamer

from himalaya_adapter.deploy.adapter_folder import LoadedAdapter
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import context_of
from himalaya_adapter.evaluation.generation import GREEDY
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.names import known_task
from himalaya_adapter.streams.encoding import encode_prompt

logger = logging.getLogger(__name__)
AUTO = "auto"
HALVES = re.compile("[\ud800-\udfff]")  # what Python reads a byte as that is not UTF-8


@dataclass(frozen=True)
class ChosenTask:
    """The task that a prompt is answered as.

    Args:
        name: Its name; ``None`` if the method has one answer for all tasks, or the names were not written down, or
            the frozen model answers.
        confidence: How much the prompt looks like that task's, in [0, 1]; ``None`` if the task was named.
        frozen: Whether the prompt looks like no task that is known, so that the frozen model answers.
    """

    name: str | None
    confidence: float | None = None
    frozen: bool = False

    def __str__(self) -> str:
        if self.frozen:
            return (
                f"the prompt looks like no task that is known ({self.confidence:.2f} of 1): the frozen model answers"
            )
        return f"task {self.name or 'without a name'}, confidence {self.confidence:.2f}"


def choose_task(adapter: LoadedAdapter, prompt: str, task: str = AUTO) -> ChosenTask:
    """Switch the adapter to a task.

    Args:
        adapter: A loaded adapter.
        prompt: The text that will be answered.
        task: A task's name, or ``"auto"``: the task that the prompt looks like.

    Raises:
        HimalayaError: A task that the adapter has not learnt, or ``"auto"`` for a method that switches between tasks
            and cannot tell one from its prompt.
    """
    method, known = continual(adapter.model), adapter.tasks
    kind = adapter.model.active_peft_config.peft_type.value
    if task != AUTO and known:
        task = known_task(task, known)
    if not method.switches_tasks:
        if task != AUTO:
            logger.warning("an adapter of %s answers alike for all tasks: the name '%s' changes nothing", kind, task)
        return ChosenTask(None)
    if task != AUTO:
        if not known and not method.remembers_task(task):
            logger.warning("the adapter has seen no prompts of a task '%s': it answers as an untrained one", task)
        method.set_task(task)
        return ChosenTask(task)
    if not method.recognises_tasks:
        raise HimalayaError(f"{kind} cannot tell a task from its prompt: name one with --task ({', '.join(known)})")
    ((name, confidence),) = method.infer_task(_encoded(adapter, prompt, context_of(adapter.model)), known)
    if confidence == 0:
        raise HimalayaError("the adapter has not learnt to tell tasks from prompts: name one with --task")
    method.set_task(name)  # without a name: as the prompt says, each time
    return ChosenTask(name, confidence, frozen=name is None and bool(method.tasks))


def answer(
    adapter: LoadedAdapter,
    prompt: str,
    max_new_tokens: int,
    streamer: BaseStreamer | None = None,
    *,
    chat: bool = False,
) -> str:
    """The greedy answer to a prompt, as the task that the adapter is switched to.

    Args:
        adapter: A loaded adapter.
        prompt: Text in the form of the task's training prompts. One that is too long for the backbone loses its
            beginning.
        max_new_tokens: The most tokens of the answer.
        streamer: Is given each token as soon as it is there.
        chat: Whether the prompt is in the words of the backbone's chat template.

    Raises:
        HimalayaError: The prompt is empty, or the backbone has no room for so long an answer.
    """
    check_request(prompt, max_new_tokens)
    positions = context_of(adapter.model)
    if max_new_tokens >= positions:
        raise HimalayaError(
            f"max_new_tokens={max_new_tokens}: the backbone has {positions} positions, prompt included"
        )
    inputs = _encoded(adapter, prompt, positions - max_new_tokens, chat)
    output = adapter.model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_new_tokens,
        pad_token_id=adapter.tokenizer.pad_token_id,
        streamer=streamer,
        **GREEDY,
    )
    return str(adapter.tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True))


def check_request(prompt: str, max_new_tokens: int) -> None:
    """Refuse what no model can answer.

    Raises:
        HimalayaError: The prompt is empty or no text, or no token is asked for.
    """
    if HALVES.search(prompt):
        raise HimalayaError("the prompt holds something else than text in UTF-8")
    if not prompt.strip():
        raise HimalayaError("the prompt is empty: give the text that is to be answered")
    if max_new_tokens < 1:
        raise HimalayaError(f"max_new_tokens={max_new_tokens}: expected a whole number of at least 1")


def _encoded(adapter: LoadedAdapter, prompt: str, room: int, chat: bool = False) -> torch.Tensor:
    """Tokens of a prompt ``(1, length)``, as in training; the last ``room`` of them."""
    tokens = encode_prompt(adapter.tokenizer, prompt, room, chat=chat)
    return torch.tensor([tokens], device=adapter.model.device)
