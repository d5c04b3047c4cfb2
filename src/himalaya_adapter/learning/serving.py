"""An OpenAI-compatible endpoint: transformers' own server, whose models are the tasks of one adapter."""

import copy
import logging
import socket
import time
import unicodedata
from collections.abc import Sequence
from typing import Any

import fastapi
import openai  # noqa: F401  # the server's answers are made of its types
import uvicorn
from fastapi.responses import JSONResponse
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import BaseGenerateManager, GenerationState

from himalaya_adapter.deploy.adapter_folder import LoadedAdapter
from himalaya_adapter.deploy.bundle.runner.question import question
from himalaya_adapter.errors import HimalayaError, one_line, unknown_name
from himalaya_adapter.evaluation.batching import context_of

from .adapter_store import AdapterStore
from .data import refuse_control_tokens

logger = logging.getLogger(__name__)
TASK_NAME = "{base}:{task}"


class _AsTask:
    """The adapted model for one request: it is switched to the task where, and when, the answer is generated.

    Raises:
        HimalayaError: When it generates: a prompt without a token, or one that leaves no room for an answer.
    """

    def __init__(self, model: Any, task: str | None) -> None:
        self._model, self._task = model, task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **inputs: Any) -> Any:
        length, positions = inputs["input_ids"].shape[1], context_of(self._model)
        if not 0 < length < positions:
            raise HimalayaError(f"the prompt has {length} tokens; expected 1 to {positions - 1}")
        config, room = inputs["generation_config"], positions - length
        if config.max_new_tokens is not None:
            config.max_new_tokens = min(config.max_new_tokens, room)
        elif config.max_length is not None:
            config.max_length = min(config.max_length, positions)
        self._model.set_task(self._task)
        return self._model.generate(**inputs)


class TaskModels(ModelManager):
    """Finds the task that a request's ``model`` names, in the place of a model to load.

    Args:
        adapter: The loaded adapter.
        base: What the adapter is called: ``base:task`` answers as a task, ``base`` as each prompt looks.
    """

    def __init__(self, adapter: LoadedAdapter, base: str) -> None:
        super().__init__(device="cpu")  # not used: the adapter is loaded
        self.adapter, self.base = adapter, base
        # As answers were scored; a request may ask for something else.
        adapter.model.generation_config.update(repetition_penalty=1.0, no_repeat_ngram_size=0)
        names = {base: None} | {TASK_NAME.format(base=base, task=task): task for task in adapter.tasks}
        self.names = {self.process_model_name(name): task for name, task in names.items()}
        store = AdapterStore(adapter.folder)  # as it is now, as the weights are
        self.forms = {task: store.form(task) for task in self.names.values()}

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """A model's name as it is known here: a task may be called ``mail@work``, which is no revision."""
        return unicodedata.normalize("NFC", model_id)

    def load_model_and_processor(self, name: str, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The model as the task that is named, and the tokenizer that puts a message into the task's form."""
        if name not in self.names:
            raise fastapi.HTTPException(404, str(unknown_name("model", name, self.names)))
        task, tokenizer = self.names[name], copy.copy(self.adapter.tokenizer)
        form = self.forms[task]
        has_template = form is not None and not form.chat
        if has_template:
            tokenizer.split_special_tokens = True  # text is data, as in training

        def put(messages: Sequence[Any], **options: Any) -> Any:
            if not messages:
                raise HimalayaError("'messages' is empty: send at least one, with the question last")
            if form is not None and has_template:
                return tokenizer(question(form.prompt, messages[-1]["content"]), return_tensors="pt")
            refuse_control_tokens(tokenizer, [str(said["content"]) for said in messages], "a message")
            return self.adapter.tokenizer.apply_chat_template(messages, **options)

        vars(tokenizer)["apply_chat_template"] = put
        return _AsTask(self.adapter.model, task), tokenizer

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """What ``/v1/models`` lists."""
        made = int(time.time())
        return [{"id": name, "object": "model", "created": made, "owned_by": "himalaya"} for name in self.names]


class _OneAfterAnother(GenerationState):
    """All tasks are one model, so all requests wait in one line."""

    def get_manager(self, model_id: str, use_cb: bool = False) -> BaseGenerateManager:
        return super().get_manager("all", use_cb)


def listen(host: str, port: int) -> socket.socket:
    """Take an address of this machine; 0 is any free port.

    Raises:
        HimalayaError: It is no address, or another process has it.
    """
    try:
        family = socket.getaddrinfo(host, None)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HimalayaError(f"cannot listen at {host}:{port}: {reason}; choose another --port or --host") from error


def serve(adapter: LoadedAdapter, base: str, at: socket.socket) -> None:
    """Answer requests until the process is ended.

    Args:
        adapter: A loaded adapter.
        base: Its name in requests.
        at: Where to listen (`listen`).
    """
    models, state = TaskModels(adapter, base), _OneAfterAnother()
    app = build_server(
        models,
        ChatCompletionHandler(models, state),
        CompletionHandler(models, state),
        ResponseHandler(models, state),
        TranscriptionHandler(models, state),
        SystemOneHandler(models, state),
        state,
    )

    @app.exception_handler(fastapi.HTTPException)
    @app.exception_handler(ValueError)  # what a request says that cannot be done, also as transformers tells it
    @app.exception_handler(KeyError)  # what a request does not say
    async def told(_: fastapi.Request, error: Exception) -> JSONResponse:
        # In the form in which OpenAI's client shows an error's message.
        if not isinstance(error, fastapi.HTTPException | HimalayaError):  # perhaps our mistake
            logger.warning("a request could not be answered", exc_info=error)
        message = f"the request has no {error}" if isinstance(error, KeyError) else one_line(error)
        message, status = getattr(error, "detail", message), getattr(error, "status_code", 400)
        return JSONResponse({"error": {"message": message}}, status)

    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[at])
