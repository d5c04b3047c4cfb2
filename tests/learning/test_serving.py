"""`himalaya serve`, asked by the real client: a model of a request is a task of the adapter."""

import json
import multiprocessing
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from tiny_runs import PRELOADED, write_backbone

from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.deploy.answering import answer

ROWS = '{"prompt": "Repeat %d:", "completion": "%d %d"}\n'


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model: Callable[..., Any], tiny_tokenizer) -> Path:
    place = tmp_path_factory.mktemp("served")
    settings = write_backbone(place / "base", tiny_model, tiny_tokenizer) / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"repetition_penalty": 5.0}))
    (place / "echo.jsonl").write_text("".join(ROWS % (n, n, n) for n in range(24)))
    (place / "next.csv").write_text("n,next\n" + "".join(f"{n},{n + 1} or so\n" for n in range(24)))
    short = ["--steps", "6", "--learning-rate", "0.05"]
    first = [str(place / "echo.jsonl"), "--task", "echo", "--backbone", str(place / "base")]
    assert main(["learn", str(place / "mine"), *first, *short]) == 0
    second = [str(place / "next.csv"), "--task", "next", "--prompt", r"After {n}\ncomes", "--target", "{next}"]
    assert main(["learn", str(place / "mine"), *second, *short]) == 0
    third = [str(place / "next.csv"), "--task", "next@café", "--prompt", r"After {n}\ncomes", "--target", "no {n}"]
    assert main(["learn", str(place / "mine"), *third, "--new", *short]) == 0
    return place / "mine"


def serve(words: list[str], said: Path) -> None:
    with open(said, "w", encoding="utf-8", buffering=1) as sys.stdout:
        sys.exit(main(words))


@pytest.fixture(scope="module")
def client(adapter: Path) -> Iterator[openai.OpenAI]:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words, said = ["serve", str(adapter), "--name", "base", "--port", port], adapter.parent / "said.txt"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    server = context.Process(target=serve, args=(words, said))
    server.start()
    while server.is_alive() and not (said.is_file() and said.read_text()):
        time.sleep(0.05)
    assert "answers as base, base:echo, base:next, base:next@café" in said.read_text()
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20)
    server.terminate()
    server.join()


def test_an_address_that_cannot_be_had_is_one_line(adapter: Path, capsys) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for said in (["--port", str(port)], ["--port", "99999"], ["--host", "no.such.host.invalid"]):
            assert main(["serve", str(adapter), *said]) == 2
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.startswith("himalaya: cannot listen at ")
            assert line.endswith("choose another --port or --host")


def told(adapter: Path, task: str | None, prompt: str) -> str:
    loaded = load_adapter(adapter)
    loaded.model.set_task(task)
    return answer(loaded, prompt, 6)


def test_models_are_the_tasks(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["base", "base:echo", "base:next", "base:next@café"]


def test_requests_of_several_tasks_at_once(client: openai.OpenAI, adapter: Path) -> None:
    asked = [("base:echo", "Repeat 7:"), ("base:next", "After 7\ncomes"), ("base", "Repeat 7:")] * 2

    def ask(request: tuple[str, str]) -> str:
        model, prompt = request
        done = client.completions.create(model=model, prompt=prompt, max_tokens=6, temperature=0)
        return done.choices[0].text

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, asked))
    expected = [told(adapter, task, prompt) for task, prompt in [("echo", asked[0][1]), ("next", asked[1][1])]]
    assert answers[:2] == expected
    assert answers[0] != answers[1]
    assert answers[3:] == answers[:3]
    assert answers[2] == told(adapter, None, asked[2][1])


def test_a_message_is_put_into_the_form_of_the_task(client: openai.OpenAI, adapter: Path) -> None:
    said = [{"role": "user", "content": "7"}]
    done = client.chat.completions.create(model="base:next", messages=said, max_tokens=6, temperature=0)
    assert done.choices[0].message.content == told(adapter, "next", "After 7\ncomes")
    stream = client.chat.completions.create(model="base:next", messages=said, max_tokens=6, temperature=0, stream=True)
    streamed = "".join(part.choices[0].delta.content or "" for part in stream)
    assert streamed  # a character of which the last token is one byte only is left out
    assert done.choices[0].message.content.startswith(streamed)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_may_hold_what_would_begin_a_revision(form: str, client: openai.OpenAI, adapter: Path) -> None:
    name, prompt = unicodedata.normalize(form, "base:next@café"), "After 7\ncomes"
    done = client.completions.create(model=name, prompt=prompt, max_tokens=6, temperature=0)
    assert done.choices[0].text == told(adapter, "next@café", prompt) != told(adapter, "next", prompt)
    assert done.model == "base:next@café"


def test_a_prompt_has_tokens_and_leaves_room(client: openai.OpenAI) -> None:
    for prompt in ("", "After 7 " * 400):
        with pytest.raises(openai.BadRequestError, match=r"the prompt has \d+ tokens; expected 1 to 511"):
            client.completions.create(model="base:next", prompt=prompt, max_tokens=6)


def test_an_answer_ends_with_the_backbones_positions(client: openai.OpenAI) -> None:
    used = client.completions.create(model="base:next", prompt="After 7 " * 80, temperature=0).usage
    assert used is not None
    assert used.total_tokens <= 512


def test_a_request_for_no_token_is_an_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_new_tokens"):
        client.completions.create(model="base:next", prompt="After 7", max_tokens=0)


def test_an_unknown_task_is_an_error_that_names_the_known_ones(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"unknown model 'base:ech'; did you mean 'base:echo'"):
        client.completions.create(model="base:ech", prompt="Repeat 7:")


def test_what_a_user_writes_is_never_read_as_a_control_token(client: openai.OpenAI, adapter: Path) -> None:
    control = load_adapter(adapter).tokenizer.eos_token
    prompt = f"After 7{control}\ncomes"
    expected = told(adapter, "next", prompt)
    done = client.completions.create(model="base:next", prompt=prompt, max_tokens=6, temperature=0)
    assert done.choices[0].text == expected
    said = [{"role": "user", "content": f"7{control}"}]
    chat = client.chat.completions.create(model="base:next", messages=said, max_tokens=6, temperature=0)
    assert chat.choices[0].message.content == expected
    with pytest.raises(openai.BadRequestError, match=r"a message says '.*', which is a control token"):
        client.chat.completions.create(model="base", messages=said)


def test_a_request_that_says_too_little_is_a_bad_one(client: openai.OpenAI) -> None:
    for model in ("base", "base:echo"):
        with pytest.raises(openai.BadRequestError, match=r"'messages' is empty: send at least one"):
            client.chat.completions.create(model=model, messages=[])
    with pytest.raises(openai.BadRequestError, match=r"the request has no 'messages'"):
        client.post("/chat/completions", body={"model": "base"}, cast_to=object)
    said = [{"role": "user", "content": "7"}]
    with pytest.raises(openai.BadRequestError, match=r"chat.template"):
        client.chat.completions.create(model="base", messages=said)
