"""Run configs drafted by a language model behind an OpenAI-compatible endpoint, with the schema as the judge."""

import contextlib
import json
import os
import re
from dataclasses import asdict
from urllib.parse import urlsplit

from himalaya_adapter.documents import parse_document
from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.experiments.keys import flattened
from himalaya_adapter.experiments.plans.generation import Catalogue, Fixed, fixed_values
from himalaya_adapter.experiments.plans.plan import Plan
from himalaya_adapter.experiments.plans.run_files import RunText, canonical, document_entries, run_of_text
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import keys_of

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


def draft_configs(plan: Plan, text: str, known: Catalogue, url: str, model: str) -> list[RunText]:
    """Let a language model write the run configs of a plan, and judge them as any others.

    What the judge says of an answer is sent back, at most `ROUNDS` answers in all. The key of the service is read
    from ``OPENAI_API_KEY``; it is neither logged nor part of a message.

    Args:
        plan: The plan.
        text: As it is written.
        known: What the higher floors know by name.
        url: The endpoint's base URL, such as ``http://localhost:8000/v1``.
        model: The model's name there.

    Raises:
        HimalayaError: The plan's runs cannot be read, the extra ``draft`` is not installed, the endpoint does not
            answer, or no answer was accepted.
    """
    runs = fixed_values(plan, known)
    messages = [{"role": "user", "content": prompt(text, runs)}]
    errors: list[str] = []
    for _ in range(ROUNDS):
        answer = _ask(messages, url, model)
        configs, errors = judge(answer, runs)
        if not errors:
            return configs
        messages += [{"role": "assistant", "content": answer}]
        messages += [{"role": "user", "content": AGAIN.format(errors="\n".join(f"- {one}" for one in errors))}]
    raise HimalayaError(f"{model} gave no valid run configs in {ROUNDS} answers; {'; '.join(errors)}")


def prompt(plan: str, runs: list[Fixed]) -> str:
    """What the language model is asked: the plan, its runs, and the schema's keys with what they take."""
    keys = [
        f"{key.path}: {key.expected}. {key.meaning} Default: {key.default}."
        for key in keys_of(RunConfig).values()
        if not key.section
    ]
    listed = [json.dumps(dict(facts.values), ensure_ascii=False) for facts in runs]
    return TASK.format(keys="\n".join(keys), runs="\n".join(listed), plan=plan)


def judge(answer: str, runs: list[Fixed]) -> tuple[list[RunText], list[str]]:
    """The run configs of an answer in their written form, in the plan's order, or what is wrong with them."""
    fenced = FENCED.fullmatch(answer)
    try:
        entries = {entry.run_id: entry for entry in document_entries(json.loads(fenced[1] if fenced else answer))}
    except (json.JSONDecodeError, RecursionError) as error:
        return [], [f"the answer is not JSON: {error}"]
    except HimalayaError as error:
        return [], [str(error)]
    configs, errors = [], []
    planned = [facts.run_id for facts in runs]
    errors += [f"run_id '{name}' is none of the plan's" for name in entries if name not in planned]
    for facts in runs:
        name = facts.run_id
        if name not in entries:
            errors.append(f"run '{name}' is missing")
            continue
        try:
            given = flattened(asdict(run_of_text(entries[name])))
            for key, value in facts.values.items():
                if given.get(key) != value:
                    raise HimalayaError(f"{key}={given.get(key)}: the plan has {value}")
            configs.append(canonical(name, parse_document(entries[name].text, name)))
        except HimalayaError as error:
            errors.append(f"run '{name}': {error}")
    return configs, errors


def _ask(messages: list[dict[str, str]], url: str, model: str) -> str:
    try:
        from openai import APIStatusError, OpenAI, OpenAIError
    except ImportError as error:
        raise HimalayaError("--draft-url needs the openai package: pip install 'himalaya-adapter[draft]'") from error
    _check_url(url)
    key = os.environ.get(KEY_VARIABLE)
    try:
        # Servers of one's own ask for no key; the client wants one.
        client = OpenAI(base_url=url, api_key=key or "none", timeout=SECONDS, max_retries=1)
        reply = client.chat.completions.create(model=model, messages=messages, temperature=0)  # type: ignore[arg-type]
        answer = reply.choices[0].message.content
    except APIStatusError as error:
        raise HimalayaError(f"{url} refuses the request: {_without(key, error)}") from error
    except (OpenAIError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise HimalayaError(f"no answer from {url}: {_without(key, error)}") from error
    if not isinstance(answer, str):
        raise HimalayaError(f"no answer from {url}: the reply holds no text")
    return answer


def _check_url(url: str) -> None:
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        plain = parts.username is None and parts.password is None and parts.port != 0  # a port may be a ValueError
        if parts.scheme in ("http", "https") and parts.hostname and plain and not re.search(r"\s", url):
            return
    raise HimalayaError("--draft-url: expected http(s)://host[:port]/path, without a user name or password")


def _without(key: str | None, error: Exception) -> str:
    """An error's message without the key, which a server may repeat."""
    message = one_line(error)
    return (message.replace(key, "…") if key else message)[:LONGEST_MESSAGE]
