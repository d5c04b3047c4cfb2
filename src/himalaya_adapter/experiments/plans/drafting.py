"""Run configs drafted by a language model behind an OpenAI-compatible endpoint, with the schema as the judge."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from himalaya_adapter.documents import parse_document
from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.experiments.keys import flattened
from himalaya_adapter.experiments.plans.generation import Values, planned_values
from himalaya_adapter.experiments.plans.plan import Plan
from himalaya_adapter.experiments.plans.run_files import Document
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import keys_of, parse

ROUNDS = 4  # answers that are judged; who has not got it right by then is refused
SECONDS = 300.0  # to wait for one answer
LONGEST_MESSAGE = 500  # characters of what a server says
KEY_VARIABLE = "OPENAI_API_KEY"
FENCED = re.compile(r"\s*```\w*\n(.*)\n```\s*", re.DOTALL)
TASK = """You write run configs (YAML) for the experiment plan below, one for each of its runs.
Answer with one JSON object and nothing else: {{"run_configs": [{{"run_id": "...", "run_config_yaml": "..."}}]}}.

# Keys of a run config
Other keys are refused. Leave out what the plan does not ask for; a key of another method is refused.
{keys}

# Runs, with the values that the plan fixes
{runs}

# Plan
{plan}
"""
AGAIN = "These configs are not accepted:\n{errors}\nAnswer with the whole corrected JSON object and nothing else."


def draft_configs(plan: Plan, text: str, url: str, model: str) -> list[dict[str, Any]]:
    """Let a language model write the run configs of a plan, and judge them as any others.

    What the judge says of an answer is sent back, at most `ROUNDS` answers in all. The key of the service is read
    from ``OPENAI_API_KEY``; it is neither logged nor part of a message.

    Args:
        plan: The plan.
        text: As it is written.
        url: The endpoint's base URL, such as ``http://localhost:8000/v1``.
        model: The model's name there.

    Raises:
        HimalayaError: The plan's runs cannot be read, the extra ``draft`` is not installed, the endpoint does not
            answer, or no answer was accepted.
    """
    planned = planned_values(plan)
    messages = [{"role": "user", "content": prompt(text, planned)}]
    errors: list[str] = []
    for _ in range(ROUNDS):
        answer = _ask(messages, url, model)
        contents, errors = judge(answer, planned)
        if not errors:
            return contents
        messages += [{"role": "assistant", "content": answer}]
        messages += [{"role": "user", "content": AGAIN.format(errors="\n".join(f"- {one}" for one in errors))}]
    raise HimalayaError(f"{model} gave no valid run configs in {ROUNDS} answers; {'; '.join(errors)}")


def prompt(plan: str, planned: Sequence[Values]) -> str:
    """What the language model is asked: the plan, its runs, and the schema's keys with what they take."""
    keys = [
        f"{key.path}: {key.expected}. {key.meaning} Default: {key.default}." for key in keys_of(RunConfig).values()
    ]
    runs = [{key: one.value for key, one in values.items()} for values in planned]
    listed = [json.dumps(run, ensure_ascii=False) for run in runs]
    return TASK.format(keys="\n".join(keys), runs="\n".join(listed), plan=plan)


def judge(answer: str, planned: Sequence[Values]) -> tuple[list[dict[str, Any]], list[str]]:
    """The contents of an answer's run configs, in the plan's order, or what is wrong with them."""
    fenced = FENCED.fullmatch(answer)
    try:
        document = parse_document(fenced[1] if fenced else answer, "the answer", json_text=True)
        entries = {entry.run_id: entry for entry in parse(Document, document, "the answer").run_configs}
    except HimalayaError as error:
        return [], [str(error)]
    contents, errors = [], []
    for values in planned:
        run_id = str(values["run_id"].value)
        try:
            if run_id not in entries:
                raise HimalayaError("it is missing")
            content, run = entries[run_id].read()
            given = flattened(asdict(run))
            for key, one in values.items():
                if given.get(key) != one.value:
                    raise HimalayaError(f"{key}={given.get(key)}: the plan has {one.value}")
            contents.append(content)
        except HimalayaError as error:
            errors.append(f"run '{run_id}': {error}")
    return contents, errors


def _ask(messages: list[dict[str, str]], url: str, model: str) -> str:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise HimalayaError("--draft-url needs the openai package: pip install 'himalaya-adapter[draft]'") from error
    key = os.environ.get(KEY_VARIABLE)
    try:
        # Servers of one's own ask for no key; the client wants one.
        client = OpenAI(base_url=url, api_key=key or "none", timeout=SECONDS, max_retries=1)
        reply = client.chat.completions.create(model=model, messages=messages, temperature=0)  # type: ignore[arg-type]
        answer = reply.choices[0].message.content
        if not isinstance(answer, str):
            raise TypeError("the reply holds no text")
    except Exception as error:  # of the client, which answers in any form, and of URLs that are none
        message = one_line(error)  # the server may repeat the key, and a URL may hold a password
        message = (message.replace(key, "…") if key else message)[:LONGEST_MESSAGE]
        raise HimalayaError(f"no answer from --draft-url: {message}") from error
    return answer
