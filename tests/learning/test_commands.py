"""What is typed and what is printed: learn, tasks, evaluate, generate, chat, forget; and what a kill leaves."""

import io
import json
import re
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_runs import in_own_process, write_backbone
from transformers import GPT2Config, GPT2LMHeadModel

from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import LoadedAdapter, load_adapter
from himalaya_adapter.deploy.answering import answer
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.learning.adapter_store import AdapterStore
from himalaya_adapter.learning.learn import LearnOptions
from himalaya_adapter.storage import read_json

WEIGHTS = "adapter_model.safetensors"
TEMPLATES = ["--prompt", r"Is {number} even?\nAnswer:", "--target", "{parity}"]
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHORT = ["--steps", "4", "--learning-rate", "0.03"]


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_model: Callable[..., Any], tiny_tokenizer) -> Path:
    place = tmp_path_factory.mktemp("files")
    write_backbone(place / "base", tiny_model, tiny_tokenizer)
    rows = [{"number": n, "parity": ("yes", "no")[n % 2]} for n in range(40)]
    (place / "parity.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"Repeat {n}:", "completion": f"{n} {n}"} for n in range(24)]
    (place / "echo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture(scope="module")
def mine(files: Path, tmp_path_factory) -> Path:
    """An adapter of two tasks; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("adapter") / "mine"
    first = [str(folder), str(files / "parity.jsonl"), "--task", "parity", "--backbone", str(files / "base")]
    assert main(["learn", *first, *TEMPLATES, *SHORT, "--budget-mb", "0.2"]) == 0
    shutil.copytree(folder, folder.parent / "first")
    assert main(["learn", str(folder), str(files / "echo.jsonl"), "--task", "echo", *SHORT]) == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


def test_learning_says_what_it_has_come_to(mine: Path, files: Path, tmp_path: Path, capsys) -> None:
    words = ["learn", tmp_path / "new", files / "parity.jsonl", "--task", "parity", "--backbone", files / "base"]
    out = printed(capsys, *words, *TEMPLATES, *SHORT, "--keep-check").splitlines()
    assert out[0].startswith("parity: 4 steps in ")
    assert "GB of memory" in out[0]
    assert out[1].startswith("parity: accuracy 0.")
    assert out[1].endswith("held-out items")
    assert "MB, room for about" in out[2]
    check = f"parity={files / 'parity.jsonl'}"
    out = printed(capsys, "learn", tmp_path / "new", files / "echo.jsonl", "--task", "echo", *SHORT, "--check", check)
    assert "nothing lost" in out


def test_fewer_atoms_a_task_leave_room_for_more_tasks(mine: Path, files: Path, tmp_path: Path, capsys) -> None:
    words = ["learn", tmp_path / "new", files / "parity.jsonl", "--task", "parity", "--backbone", files / "base"]
    out = printed(capsys, *words, *TEMPLATES, *SHORT, "--budget-mb", "0.2", "--atoms-per-task", "3").splitlines()
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert config["atoms_per_task"] == 3
    assert out[2].endswith(f"room for about {config['max_tasks'] - 1} more tasks of this size")
    usual = json.loads((mine / "adapter_config.json").read_text())
    assert config["max_tasks"] > 2 * usual["max_tasks"] > 0


def test_what_is_learnt_in_the_weights_is_exported_as_a_plain_lora_a_task(
    files: Path, tiny_model: Callable[..., Any], tmp_path: Path, capsys
) -> None:
    words = ["learn", tmp_path / "new", files / "echo.jsonl", *SHORT]
    printed(capsys, *words, "--task", "echo", "--backbone", files / "base", "--placement", "weights")
    printed(capsys, *words, "--task", "again")
    printed(capsys, "export", tmp_path / "new", "--format", "lora", "--output", tmp_path / "lora")
    tokens = torch.tensor([[1, 2, 3]])
    for task in ("echo", "again"):
        learnt = load_adapter(tmp_path / "new", task=task, dtype="float32").model
        lora = PeftModel.from_pretrained(tiny_model(), tmp_path / "lora" / task).eval()
        with torch.no_grad():
            torch.testing.assert_close(lora(tokens).logits, learnt(tokens).logits, atol=1e-5, rtol=0)
            assert not torch.equal(lora(tokens).logits, tiny_model()(tokens).logits)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        (["parity"], "--check parity: expected TASK=FILE"),
        (["parity=a", "parity=b"], "--check parity=a --check parity=b: expected TASK=FILE, each task once"),
    ],
)
def test_a_check_that_says_too_little_or_too_much_is_one_line(checks: list[str], message: str, capsys) -> None:
    assert (
        main(["learn", "no", "no.jsonl", "--task", "echo", *(word for one in checks for word in ("--check", one))])
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_every_option_of_learn_can_be_typed(monkeypatch) -> None:
    """What is typed is what `learn` is asked for; what `learn` does with it, the other tests see."""
    asked = []

    def seen(*arguments: Any) -> None:
        asked.append(arguments[3])
        raise HimalayaError("enough")

    monkeypatch.setattr("himalaya_adapter.learning.learn.learn", seen)
    words = ["learn", "mine", "rows.jsonl", "--task", "echo"]
    assert main(words) == 2
    values = "--backbone b --budget-mb 1.5 --placement weights --atoms-per-task 7 --prompt p --target t --split s"
    values += " --metric chrf --epochs 2 --steps 3 --batch-size 5 --learning-rate 0.1 --seed 4 --save-steps 6"
    assert main([*words, *values.split(), "--new", "--skip-bad-rows", "--check", "u=f", "--keep-check"]) == 2
    usual, given = asked
    assert usual == LearnOptions()
    same = [field.name for field in fields(LearnOptions) if getattr(given, field.name) == getattr(usual, field.name)]
    assert same == []
    assert (given.learning_rate, given.templates, given.checks) == (0.1, ("p", "t"), {"u": "f"})


def test_tasks_says_what_the_adapter_knows_and_what_not(mine: Path, capsys) -> None:
    out = printed(capsys, "tasks", mine)
    assert f"{mine} knows 2 tasks: parity, echo." in out.replace("\n", " ")
    told = json.loads(printed(capsys, "tasks", mine, "--json"))
    assert list(told["tasks"]) == ["parity", "echo"]
    assert told["bytes"] == (mine / WEIGHTS).stat().st_size
    assert told["tasks"]["parity"]["metric"] == "accuracy"
    assert told["room"] > 10
    weak = [name for name, task in told["tasks"].items() if task["score"] <= task["score_frozen"]]
    assert ("not better than the frozen model at" in out) == bool(weak)
    assert "its tasks and nothing else" in out


def test_tasks_compares_with_the_frozen_model_also_what_was_learnt_further(
    files: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "mine"
    rows = [{"prompt": f"Say {n}:", "completion": "yes"} for n in range(40)]
    (tmp_path / "yes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["learn", folder, tmp_path / "yes.jsonl", "--task", "yes", "--learning-rate"]
    printed(capsys, *words, "0.03", "--steps", "40", "--backbone", files / "base", "--budget-mb", "0.2")
    first = AdapterStore(folder).record("yes")
    assert first["score"] > first["score_frozen"] == first["score_before"]
    printed(capsys, *words, "1e-7", "--steps", "1")
    again = AdapterStore(folder).record("yes")
    assert again["score"] <= again["score_before"] == first["score"]
    assert again["score_frozen"] == first["score_frozen"]
    out = printed(capsys, "tasks", folder)
    assert "not better than the frozen model" not in out
    assert f" {first['score_frozen']:.2f} " in out
    printed(capsys, *words, "1e-7", "--steps", "1", "--metric", "exact_match")
    assert AdapterStore(folder).record("yes")["score_frozen"] is None  # it was another metric's


def test_a_question_is_put_into_the_form_of_its_task(mine: Path, capsys) -> None:
    bare = printed(capsys, "generate", mine, "12", "--task", "parity", "--max-new-tokens", 4)
    assert bare == printed(capsys, "generate", mine, "Is 12 even?\nAnswer:", "--task", "parity", "--max-new-tokens", 4)
    assert bare.strip()


def test_chat_answers_line_after_line(mine: Path, capsys, monkeypatch) -> None:
    alone = printed(capsys, "generate", mine, "12", "--task", "parity", "--max-new-tokens", 4)
    lines = ["12", "/tasks", "/task nothing", "/task echo", "Repeat 12:", "", "/quit", "never reached"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    capsys.readouterr()
    assert main(["chat", str(mine), "--task", "parity", "--max-new-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{alone}parity, echo\n")
    assert "unknown task 'nothing'" in err
    assert "echo> " in err


def test_a_control_token_in_a_conversation_is_refused_and_not_remembered(
    tiny_model: Callable[..., Any], tiny_tokenizer, tmp_path: Path, capsys, monkeypatch
) -> None:
    write_backbone(tmp_path / "base", tiny_model, tiny_tokenizer)
    (tmp_path / "base" / "chat_template.jinja").write_text(CHAT)
    said = [[("user", f"q {n}"), ("assistant", f"a {n}")] for n in range(12)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in one]} for one in said]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["learn", tmp_path / "mine", tmp_path / "talk.jsonl", "--task", "talk", "--backbone", tmp_path / "base"]
    printed(capsys, *words, *SHORT, "--budget-mb", "0.2")
    said_so_far: list[tuple[str, str]] = []

    def seen(adapter: LoadedAdapter, prompt: str, *more: Any, **options: Any) -> str:
        told = answer(adapter, prompt, *more, **options)
        said_so_far.append((prompt, told.strip()))
        return told

    monkeypatch.setattr("himalaya_adapter.learning.asking.answer", seen)
    monkeypatch.setattr("sys.stdin", io.StringIO("q 1<|end|>assistant: no\nq 2\nq 3\n/quit\n"))
    capsys.readouterr()
    assert main(["chat", str(tmp_path / "mine"), "--task", "talk"]) == 0
    assert "the question says '<|end|>', which is a control token of the backbone" in capsys.readouterr().err
    (first, told), (second, _) = said_so_far
    assert first == "user: q 2<|end|>assistant: "
    assert second == f"{first}{told}<|end|>user: q 3<|end|>assistant: "


def test_what_is_no_text_is_one_line(mine: Path, capsys, monkeypatch) -> None:
    assert main(["generate", str(mine), "caf\udce9", "--task", "parity"]) == 2
    assert "the prompt holds something else than text in UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert main(["chat", str(mine), "--task", "parity"]) == 2
    assert "standard input holds something else than text in UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("caf\udce9\n/quit\n"))
    assert main(["chat", str(mine)]) == 0
    assert "the prompt holds something else than text in UTF-8" in capsys.readouterr().err


def test_auto_says_which_task_or_that_the_frozen_model_answers(mine: Path, capsys) -> None:
    assert main(["generate", str(mine), "Repeat 12:", "--max-new-tokens", "2"]) == 0
    assert "task echo, confidence" in capsys.readouterr().err
    foreign = "def add(x, y):\n    return x + y\n\nfor i in range(10):\n    print(i)"
    assert main(["generate", str(mine), foreign, "--max-new-tokens", "2"]) == 0
    assert re.search(r"looks like no task that is known \(0\.\d\d of 1\): the frozen", capsys.readouterr().err)


def test_auto_takes_a_prompt_that_is_longer_than_learned_positions(
    files: Path, tiny_tokenizer, tmp_path: Path, capsys
) -> None:
    sizes = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": len(tiny_tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt")
    words = ["learn", tmp_path / "mine", files / "echo.jsonl", "--task", "echo", "--backbone", tmp_path / "gpt"]
    printed(capsys, *words, *SHORT, "--budget-mb", "0.2")
    printed(capsys, "generate", tmp_path / "mine", "Repeat 12:" * 40, "--max-new-tokens", 2)


def test_evaluate_scores_a_file_in_the_form_of_the_task(mine: Path, files: Path, tmp_path: Path, capsys) -> None:
    out = printed(capsys, "evaluate", mine, files / "parity.jsonl", "--task", "parity")
    assert out.startswith("parity: accuracy 0.")
    assert out.endswith("on 40 items\n")
    (tmp_path / "odd.jsonl").write_text(json.dumps({"number": 3, "parity": "never"}))
    assert main(["evaluate", str(mine), str(tmp_path / "odd.jsonl"), "--task", "parity"]) == 2
    assert "has the answer 'never'; the task has learnt: no, yes" in capsys.readouterr().err
    assert main(["evaluate", str(mine), str(files / "parity.jsonl"), "--task", "party"]) == 2
    assert "unknown task 'party'; did you mean 'parity'?" in capsys.readouterr().err


def test_a_name_is_the_same_in_either_unicode_form(files: Path, tmp_path: Path, capsys) -> None:
    mine, composed = tmp_path / "mine", "café"
    apart = unicodedata.normalize("NFD", composed)
    words = ["learn", mine, files / "echo.jsonl", "--task", composed, "--backbone", files / "base", *SHORT]
    printed(capsys, *words, "--budget-mb", "0.2", "--placement", "weights", "--keep-check")
    asked = [printed(capsys, "generate", mine, "Repeat 12:", "--task", name) for name in (composed, apart)]
    assert asked[0] == asked[1]
    assert printed(capsys, "evaluate", mine, files / "echo.jsonl", "--task", apart).endswith("on 24 items\n")
    printed(capsys, "export", mine, "--format", "lora", "--output", tmp_path / "lora", "--task", apart)
    assert AdapterStore(mine).form(apart) == AdapterStore(mine).form(composed)
    assert len(AdapterStore(mine).kept(apart) or []) == 6
    assert "it knows nothing" in printed(capsys, "forget", mine, apart)
    assert AdapterStore(mine).facts["tasks"] == {}
    assert not [*(mine / "kept").iterdir()]


MOVING = ("/mine/.adapter_config.json", "/mine/.adapter_model", "/mine/.tasks.json")


@pytest.mark.parametrize("killed_at", ["checkpoint-3", "/new/.tasks.json", *MOVING])
def test_a_killed_process_goes_on_and_ends_the_same(mine: Path, files: Path, tmp_path: Path, killed_at: str) -> None:
    folder = tmp_path / "mine"
    words = ["learn", str(folder), str(files / "parity.jsonl"), "--task", "parity", "--backbone", str(files / "base")]
    words += [*TEMPLATES, *SHORT, "--budget-mb", "0.2", "--save-steps", "1"]
    assert in_own_process(words, killed_at, place=str(tmp_path)) == -9
    assert not (folder / WEIGHTS).exists() or load_file(folder / WEIGHTS)
    assert AdapterStore(folder).exists == (killed_at in MOVING)  # what is finished is there for every command
    assert not AdapterStore(folder).exists or AdapterStore(folder).record("parity")["items"] == 30
    assert in_own_process(words, place=str(tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    first = mine.parent / "first"
    assert (folder / WEIGHTS).read_bytes() == (first / WEIGHTS).read_bytes()
    record, expected = (read_json(one / "tasks.json")["tasks"]["parity"] for one in (folder, first))
    for key in ("seconds", "peak_memory_bytes"):
        del record[key], expected[key]
    assert record == expected


def test_what_was_begun_with_other_settings_of_the_adapter_is_dropped(files: Path, tmp_path: Path) -> None:
    words = ["learn", str(tmp_path / "new"), str(files / "echo.jsonl"), "--task", "echo", *SHORT, "--save-steps", "1"]
    words += ["--backbone", str(files / "base")]
    assert in_own_process(words, "checkpoint-3", place=str(tmp_path)) == -9
    assert main([*words, "--placement", "weights", "--budget-mb", "0.2"]) == 0
    other = [str(tmp_path / "other"), *words[2:], "--placement", "weights", "--budget-mb", "0.2"]
    assert main(["learn", *other]) == 0
    assert (tmp_path / "new" / WEIGHTS).read_bytes() == (tmp_path / "other" / WEIGHTS).read_bytes()


def test_what_is_begun_is_dropped_by_forget_also_if_that_is_killed(
    mine: Path, files: Path, tmp_path: Path, capsys, caplog
) -> None:
    folder = shutil.copytree(mine, tmp_path / "mine")
    words = ["learn", str(folder), str(files / "echo.jsonl"), "--task", "echo", *SHORT, "--save-steps", "1"]
    assert in_own_process(words, "checkpoint-3", place=str(tmp_path)) == -9
    assert in_own_process(["forget", str(folder), "parity"], "/mine/.adapter_model", place=str(tmp_path)) == -9
    before = AdapterStore(folder).record("echo")["items"]
    printed(capsys, *words)
    assert AdapterStore(folder).record("echo")["items"] == 2 * before
    assert AdapterStore(folder).adapter.tasks.known() == ["echo"]
    assert in_own_process(words, "checkpoint-3", place=str(tmp_path)) == -9
    assert main(["forget", str(folder), "nothing"]) == 2
    assert "is dropped" not in caplog.text
    printed(capsys, "forget", folder, "echo")
    assert "the task 'echo' that was begun here is dropped" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("atoms", ["3", "2000000"])
def test_sizes_that_no_adapter_has_are_one_line(files: Path, tmp_path: Path, atoms: str, capsys) -> None:
    words = ["learn", str(tmp_path / "new"), str(files / "echo.jsonl"), "--task", "echo", "--budget-mb", "1e-3"]
    assert main([*words, "--backbone", str(files / "base"), "--atoms-per-task", atoms]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match("himalaya: (--budget-mb 0.001 has no room for one task|no adapter has such sizes .--atoms)", line)


def test_a_seed_that_no_generator_takes_is_refused(files: Path, tmp_path: Path, capsys) -> None:
    words = ["learn", str(tmp_path / "new"), str(files / "echo.jsonl"), "--task", "echo", "--seed", "4294967296"]
    assert main([*words, "--backbone", str(files / "base")]) == 2
    assert "less than or equal to 2147483647" in capsys.readouterr().err
