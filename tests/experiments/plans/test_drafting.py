"""A language model drafts, the schema judges: against a real client and a local stub of the endpoint."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from himalaya_adapter.cli import main
from himalaya_adapter.experiments import RunConfig
from himalaya_adapter.experiments.plans import content_of, generate_configs, read_plan
from himalaya_adapter.experiments.plans.drafting import KEY_VARIABLE, ROUNDS
from himalaya_adapter.experiments.schema import keys_of

KEY = "sk-very-secret"
Write = Callable[..., str]


class Stub(ThreadingHTTPServer):
    """Answers the n-th chat request with the n-th answer, then again with the last; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[str] = []
        self.status = 200
        self.raw: bytes | None = None
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        raise AssertionError("the stub itself failed")


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers["Authorization"])
        number = min(len(self.server.requests), len(self.server.answers)) - 1
        message = {"role": "assistant", "content": self.server.answers[number] if self.server.answers else None}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": []}
        reply["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        if self.server.status != 200:
            reply = {"error": {"message": f"no access with {self.headers['Authorization']}"}}
        content = self.server.raw if self.server.raw is not None else json.dumps(reply).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    pytest.importorskip("openai")
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def small(plan_file: Write) -> str:
    """A plan that the real catalogue knows."""
    return plan_file({"experimental_design/comparative_methods": []})


@pytest.fixture
def right(small: str) -> str:
    """What a good model would answer."""
    (values,) = generate_configs(read_plan(small)[1])
    content = content_of(values)
    text = yaml.safe_dump(content, sort_keys=False)
    return json.dumps({"run_configs": [{"run_id": content["run_id"], "run_config_yaml": text}]})


def draft(file: str, stub: Stub, folder: Path, *more: str) -> int:
    arguments = ["configs", "generate", file, "--output", str(folder), "--draft-url", stub.url]
    return main([*arguments, "--draft-model", "stub", *more])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert KEY not in captured.err
    return lines[0]


def test_errors_are_fed_back_until_the_draft_is_right(
    stub: Stub, small: str, right: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = right.replace("batch_size: 8", "batch_size: many")
    stub.answers = [wrong, f"```json\n{right}\n```"]
    drafted, generated = tmp_path / "drafted", tmp_path / "generated"
    assert draft(small, stub, drafted) == 0
    assert main(["configs", "generate", small, "--output", str(generated)]) == 0
    files = sorted(path.name for path in generated.iterdir())
    assert [path.name for path in sorted(drafted.iterdir())] == files
    for name in files:
        assert (drafted / name).read_bytes() == (generated / name).read_bytes()

    first, second = stub.requests
    assert first["model"] == "stub"
    (asked,) = first["messages"]
    assert Path(small).read_text(encoding="utf-8") in asked["content"]
    assert all(
        key.path in asked["content"] and key.expected in asked["content"] for key in keys_of(RunConfig).values()
    )
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == wrong
    assert 'found "many", expected a whole number' in second["messages"][2]["content"]
    assert stub.keys == [f"Bearer {KEY}"] * 2
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err
    assert not any(KEY in path.read_text(encoding="utf-8") for path in drafted.iterdir())


def test_without_a_key_a_server_of_ones_own_answers(
    stub: Stub, small: str, right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    stub.answers = [right]
    assert draft(small, stub, tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda right: right.replace("batch_size: 8", "batch_size: 0"),
            "found 0, expected a whole number of at least 1",
        ),
        (lambda right: "Sorry, I cannot do that.", "cannot read the answer: Expecting value"),
        (lambda right: "[]", "the answer: found [], expected keys with values"),
        (
            lambda right: '{"run_configs": [{"run_id": "a", "run_config_yaml": ""}]}',
            "run 'proposed-iter1-smollm2-135m-demo_stream_6': it is missing",
        ),
        (
            lambda right: right.replace("name: smollm2-135m", "name: gpt2"),
            "model.backbone.name=gpt2: the plan has smollm2-135m",
        ),
        (lambda right: right.replace("name: demo_stream_6", "name: other"), "dataset.name=other: the plan has demo"),
        (lambda right: right.replace("method_name: HIMALAYA", "method_name: ${oc.env:HOME}"), "asks for a value from"),
    ],
)
def test_a_draft_that_is_never_valid_is_refused_with_the_last_errors(
    change: Callable[[str], str],
    message: str,
    stub: Stub,
    small: str,
    right: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub.answers = [change(right)]
    assert stub.answers != [right]
    assert draft(small, stub, tmp_path / "out") == 2
    line = one_line(capsys)
    assert f"stub gave no valid run configs in {ROUNDS} answers; " in line
    assert message in line
    assert len(stub.requests) == ROUNDS
    assert not (tmp_path / "out").exists()


def test_a_refusal_does_not_tell_the_key(
    stub: Stub, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.status = 401
    assert draft(small, stub, tmp_path / "out") == 2
    assert "no answer from --draft-url: Error code: 401" in one_line(capsys)


@pytest.mark.parametrize("raw", [b"<html>hello</html>", b"{}", b'{"choices": []}', b'{"choices": null}', b"7"])
def test_a_server_that_speaks_otherwise(
    raw: bytes, stub: Stub, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.raw = raw
    assert draft(small, stub, tmp_path / "out") == 2
    assert "no answer from --draft-url: " in one_line(capsys)


def test_an_answer_without_text(stub: Stub, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draft(small, stub, tmp_path / "out") == 2
    assert "no answer from --draft-url: the reply holds no text" in one_line(capsys)


def test_no_server(stub: Stub, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.shutdown()
    stub.server_close()
    assert draft(small, stub, tmp_path / "out") == 2
    assert "no answer from --draft-url: " in one_line(capsys)


def test_a_wrong_plan_asks_nobody(stub: Stub, plan_file: Write, tmp_path: Path) -> None:
    file = plan_file({"experimental_design/comparative_methods": ["LoRAX"]})
    assert draft(file, stub, tmp_path / "out") == 2
    assert stub.requests == []


def test_without_the_package(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    arguments = ["configs", "generate", small, "--draft-url", "http://127.0.0.1:1/v1", "--draft-model", "stub"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "pip install 'himalaya-adapter[draft]'" in one_line(capsys)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "ftp://user:hush@host/v1",
        "http://[",
        "",
        "http://host:x/v1",
        "http://a b/v1",
    ],
)
def test_a_url_that_is_none(url: str, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    arguments = ["configs", "generate", small, "--draft-url", url, "--draft-model", "stub"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    line = one_line(capsys)
    assert "no answer from --draft-url: " in line
    assert "hush" not in line


def test_a_url_needs_a_model(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "generate", small, "--draft-url", "http://127.0.0.1:1/v1"]) == 2
    assert "both --draft-url URL and --draft-model NAME" in one_line(capsys)
