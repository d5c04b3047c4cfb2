"""A user's file becomes items, whatever its columns, or one clear line says what is wrong with it."""

import csv
import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.learning.data import Form, OwnData, read_data
from himalaya_adapter.learning.held_out import HeldOut, hold_out
from himalaya_adapter.learning.rows import read_rows

CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TICKETS = [{"text": f"printer {number} is broken", "team": ("it", "office")[number % 2]} for number in range(40)]
TEMPLATES = "Ticket: {text}\nTeam:", "{team}"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    chatty = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer,
        **{"eos_token": "<|end|>", "pad_token": "<|pad|>", "additional_special_tokens": ["<|turn|>"]},
    )
    chatty.chat_template = CHAT_TEMPLATE
    return chatty


@pytest.fixture
def data(tokenizer: PreTrainedTokenizerFast):
    def read(rows: list[dict[str, Any]], context: int | None = 512, **options: Any) -> OwnData:
        return read_data(rows, "mine.jsonl", tokenizer, context, **options)

    return read


def test_columns_with_templates(data) -> None:
    found = data(TICKETS, templates=TEMPLATES)
    assert found.items[0].prompt == "Ticket: printer 0 is broken\nTeam:"
    assert found.items[0].target == "it"
    assert (found.form.metric, found.form.labels) == ("accuracy", ("it", "office"))


def test_prompt_and_completion_of_free_text(data) -> None:
    found = data([{"prompt": f"Say {n}:", "completion": f"{n} and\nmore"} for n in range(30)])
    assert (found.items[3].prompt, found.items[3].target) == ("Say 3:", "3 and\nmore")
    assert (found.form.metric, found.form.labels) == ("chrf", ())
    assert 3 < found.form.max_new_tokens < 30


def test_alpaca_with_and_without_input(data) -> None:
    rows = [{"instruction": "Double it.", "input": "4", "output": "8"}, {"instruction": "Say hi.", "output": "hi"}]
    first, second = data(rows).items
    assert first.prompt == "### Instruction:\nDouble it.\n\n### Input:\n4\n\n### Response:"
    assert second.prompt == "### Instruction:\nSay hi.\n\n### Response:"
    assert second.target == "hi"
    for value in (float("nan"), ["4"]):
        with pytest.raises(HimalayaError, match=r"row 1 of mine.jsonl has (no value|a list) in field 'input'"):
            data([{**rows[0], "input": value}])


def test_messages_give_an_item_for_each_answer(data, tokenizer) -> None:
    said = [("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2")]
    messages = [{"role": role, "content": content} for role, content in said]
    first, second = data([{"messages": messages}]).items
    assert (first.target, second.target) == ("1", "2")
    assert second.prompt == tokenizer.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    assert first.chat
    assert first.source == second.source  # so that no conversation is cut in two
    trl = {"prompt": messages[:3], "completion": messages[3:]}
    assert data([trl]).items[0].prompt == second.prompt


def test_a_system_prompt_alone_does_not_make_two_conversations_one(data) -> None:
    def said(number: int, *before: dict[str, str]) -> dict[str, Any]:
        turns = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"{number}"}]
        return {"messages": [*before, *turns]}

    system = {"role": "system", "content": "You are kind."}
    task, _ = hold_out(data([said(n, system) for n in range(40)]), "mine.jsonl", "say", HeldOut(0))
    assert (len(task.train), len(task.test)) == (30, 10)
    assert data([said(1)]).items[0].source == repr([("user", "say 1")])  # as it has always been cut
    trl = {"prompt": [system, said(1)["messages"][0]], "completion": said(1)["messages"][1:]}
    assert data([trl]).items[0].source == data([said(1, system)]).items[0].source


def test_a_conversation_is_encoded_as_its_template_says(data, tokenizer) -> None:
    from himalaya_adapter.streams.encoding import encode_item

    messages = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"}]
    item = data([{"messages": messages}]).items[0]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    tokens = encode_item(tokenizer, item, 512)["input_ids"]
    assert tokens == whole[: len(tokens)]
    assert tokens[-1] == tokenizer.eos_token_id


# What a file may be --------------------------------------------------------------------------------------------


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    frame = datasets.Dataset.from_list(TICKETS)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TICKETS))
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "team"])
        writer.writeheader()
        writer.writerows(TICKETS)
    (tmp_path / "hub").mkdir()
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")  # as a data set lies on the hub
    frame.save_to_disk(tmp_path / "disk")
    datasets.DatasetDict({"train": frame, "test": frame.select([0])}).save_to_disk(tmp_path / "dict")
    for name in ("a.jsonl", "a.csv", "a.parquet", "hub", "disk", "dict"):
        assert read_rows(str(tmp_path / name)) == TICKETS, name
    assert len(read_rows(str(tmp_path / "dict"), "test")) == 1
    with pytest.raises(HimalayaError, match=r"unknown split of .* 'validation'.*known: test, train"):
        read_rows(str(tmp_path / "dict"), "validation")


STRICT = {
    "codes.csv": "code,team\n001,NA\n002,false\n",
    "short.csv": "id,text,team\n1,a,b\n2,c\n",
    "kinds.jsonl": '{"prompt": "2024-01-02", "completion": 1}\n{"prompt": "b", "completion": 2.5}\n',
}


@pytest.mark.parametrize("name", STRICT)
def test_a_table_in_a_folder_is_read_as_it_is_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(STRICT[name])
    alone, inside = read_rows(str(tmp_path / name)), read_rows(str(tmp_path))
    assert [*map(repr, inside)] == [*map(repr, alone)]
    assert len(inside) == 2


def test_all_tables_of_a_folder_s_split_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "y.csv").write_text("prompt,completion\na,1\n")
    (tmp_path / "x.jsonl").write_text('{"prompt": "b", "completion": "2"}\n')
    rows = [{"prompt": "b", "completion": "2"}, {"prompt": "a", "completion": "1"}]
    assert read_rows(str(tmp_path)) == rows
    (tmp_path / "y.csv").rename(tmp_path / "test.csv")
    (tmp_path / "x.jsonl").rename(tmp_path / "train.jsonl")
    assert read_rows(str(tmp_path)) == rows[:1]
    assert read_rows(str(tmp_path), "test") == rows[1:]
    with pytest.raises(HimalayaError, match=r"unknown split of .* 'tests'; did you mean 'test'"):
        read_rows(str(tmp_path), "tests")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: test.csv\n---\n")
    assert read_rows(str(tmp_path)) == [{"prompt": "a", "completion": 1}]  # as its card says: by `datasets`


def test_a_slip_in_a_path_is_not_asked_for_on_the_hub(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # a wrong way ends soon, with another message
    (tmp_path / "data").mkdir()
    for path in ("data/ticket", "date/tickets.jsonl", "date/tickets.csv.gz"):
        with pytest.raises(HimalayaError, match=f"there is no file {path}"):
            read_rows(path)


def test_nothing_there(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(HimalayaError, match=r"there is no file nowhere.jsonl"):
        read_rows("nowhere.jsonl")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(HimalayaError, match="cannot read the data set nobody/nothing"):
        read_rows("nobody/nothing")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(HimalayaError, match="has no rows"):
        read_rows(str(tmp_path / "empty.jsonl"))


# Bad rows ------------------------------------------------------------------------------------------------------


def test_columns_that_say_nothing_are_named(data) -> None:
    with pytest.raises(HimalayaError, match=r"mine.jsonl has the columns team, text; expected prompt and completion"):
        data(TICKETS)
    with pytest.raises(HimalayaError, match=r"unknown column of mine.jsonl 'txt'; did you mean 'text'"):
        data(TICKETS, templates=("{txt}", "{team}"))


GOOD = [{"prompt": f"Say {n}:", "completion": str(n)} for n in range(10)]
CONVERSATION = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "completion": " "}, "row 11 of mine.jsonl has an empty target"),
        ({"prompt": " ", "completion": "y"}, "row 11 of mine.jsonl has an empty prompt"),
        ({"prompt": "x", "completion": None}, "row 11 of mine.jsonl has no value in field 'completion'"),
        ({"prompt": "x " * 300, "completion": "y"}, "row 11 of mine.jsonl has .* tokens .* reads at most 64"),
    ],
)
def test_a_bad_row_is_named_or_left_out(data, row: dict[str, Any], message: str) -> None:
    with pytest.raises(HimalayaError, match=f"{message}.*--skip-bad-rows"):
        data([*GOOD, row], context=64)
    found = data([*GOOD, row], context=64, skip_bad_rows=True)
    assert len(found.items) == 10
    assert sum(found.left_out.values()) == 1


def test_the_first_row_may_be_a_bad_one(data) -> None:
    found = data([{"prompt": "x"}, *GOOD], skip_bad_rows=True)
    assert len(found.items) == 10
    assert found.left_out == {"no field": 1}
    with pytest.raises(HimalayaError, match=r"unknown field in row 1 of .* 'completion'.*--skip-bad-rows"):
        data([{"prompt": "x"}, *GOOD])
    with pytest.raises(HimalayaError, match=r"row 1 of .* has an empty target.*--skip-bad-rows"):
        data([{"prompt": "x", "completion": ""}, *GOOD])


def test_where_a_template_is_wrong_nobody_is_told_to_leave_rows_out(data) -> None:
    with pytest.raises(HimalayaError, match=r"unknown column of mine.jsonl 'txt'") as caught:
        data(TICKETS, templates=("{txt}", "{team}"))
    assert "--skip-bad-rows" not in str(caught.value)
    with pytest.raises(HimalayaError, match=r"'{my text}' is not a plain field name .*: rename the column"):
        data([{"my text": "x", "team": "it"}], templates=("{my text}", "{team}"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([CONVERSATION], "no answer of role 'assistant'"),
        ("hello", "no list of messages"),
        ([CONVERSATION, {"role": "assistant", "content": ""}], "an empty message of 'assistant'"),
        ([{"role": 5, "content": "hello"}], "no list of messages"),
        ([{"role": "user", "content": "half \ud800"}], "characters that are not UTF-8"),
        ([{"role": "user", "content": "<|turn|>"}], r"says '<\|turn\|>', which is a control token"),
    ],
)
def test_a_bad_conversation_is_named(data, messages: Any, message: str) -> None:
    with pytest.raises(HimalayaError, match=f"row 1 of mine.jsonl.*{message}"):
        data([{"messages": messages}])


def test_white_space_that_is_not_learnt_is_told(data, caplog) -> None:
    data([*GOOD, {"prompt": " Say it: ", "completion": " it\n"}])
    assert caplog.text == ""
    code = {"prompt": "def f(x):\n", "completion": "    y = x\n    return y\n"}
    assert data([*GOOD, code]).items[-1].target == "y = x\n    return y"
    assert "mine.jsonl: white space at the ends of a text is not learnt, such as indentation (rows: 1)" in caplog.text


def test_conversations_need_a_chat_template(tiny_tokenizer) -> None:
    with pytest.raises(HimalayaError, match="the backbone has no chat template"):
        read_data([{"messages": []}], "mine.jsonl", tiny_tokenizer, None)


# Held out ------------------------------------------------------------------------------------------------------


def test_items_are_held_out_by_hash_and_none_is_learnt(data) -> None:
    rows = [{"prompt": f"Say {n}:", "completion": f"number {n}"} for n in range(200)]
    task, held = hold_out(data(rows), "mine.jsonl", "say", HeldOut(0))
    assert len(task.test) + len(task.train) == 200
    assert 10 <= len(task.test) <= 40
    assert not {item.prompt for item in task.test} & {item.prompt for item in task.train}
    assert hold_out(data(rows[::-1]), "mine.jsonl", "say", HeldOut(0)) == (task, held)
    other, _ = hold_out(data(rows), "mine.jsonl", "say", HeldOut(1))
    assert {item.prompt for item in other.test} != {item.prompt for item in task.test}
    # What was held out of a part of the rows is not learnt when more rows come.
    part, _ = hold_out(data(rows[:120]), "mine.jsonl", "say", HeldOut(0))
    assert {item.prompt for item in part.test} <= {item.prompt for item in task.test}


def test_what_was_held_out_of_a_few_rows_is_never_learnt_from_more(data) -> None:
    rows = [{"prompt": f"Say {n}:", "completion": f"number {n}"} for n in range(400)]
    few, held = hold_out(data(rows[:24]), "mine.jsonl", "say", HeldOut(0))
    assert len(few.test) == 6
    more, again = hold_out(data(rows), "mine.jsonl", "say", held)
    assert again == held
    assert not {item.prompt for item in few.test} & {item.prompt for item in more.train}
    new, _ = hold_out(data(rows), "mine.jsonl", "say", HeldOut(0))
    assert {item.prompt for item in few.test} & {item.prompt for item in new.train}
    out = [{"prompt": item.prompt, "completion": item.target} for item in (*few.test, *more.test)][:12]
    with pytest.raises(HimalayaError, match=r"all items of mine.jsonl are held out of task 'say' to score it"):
        hold_out(data(out), "mine.jsonl", "say", held)


def test_what_was_held_out_is_not_learnt_later_with_another_template(data) -> None:
    rows = [{"title": f"t {n}", "text": f"number {n}", "team": f"team {n}"} for n in range(200)]

    def asked(task: Any) -> tuple[set[str], set[str]]:
        return tuple({item.target for item in items} for items in (task.train, task.test))

    first = data(rows, templates=("{title}: {text}", "{team}"))
    task, held = hold_out(first, "mine.jsonl", "say", HeldOut(0))
    known = first.form
    for template in ("{text}?", "Of {title}:"):
        further = data(rows, templates=(template, "{team}"), known=known)
        again, held = hold_out(further, "mine.jsonl", "say", held)
        assert asked(again) == asked(task)
        known = further.form
    same = data(rows, known=known)
    assert asked(hold_out(same, "mine.jsonl", "say", held)[0]) == asked(task)
    other = [{"text": row["text"], "team": row["team"]} for row in rows]  # without the first template's columns
    assert data(other, templates=("{text}?", "{team}"), known=known).items[0].source == "number 0?"


def test_repeated_and_contradictory_rows_are_counted(data) -> None:
    rows = [{"prompt": f"Say {n}:", "completion": str(n)} for n in range(20)]
    task, _ = hold_out(
        data([*rows, rows[0], {"prompt": "Say 1:", "completion": "one"}]), "mine.jsonl", "say", HeldOut(0)
    )
    assert task.skipped == {"repeated or contradictory": 3}
    assert len(task.train) + len(task.test) == 19


def test_three_rows_are_too_few(data) -> None:
    with pytest.raises(HimalayaError, match=r"mine.jsonl gives 3 different items: at least 8 are needed"):
        hold_out(data(GOOD[:3]), "mine.jsonl", "say", HeldOut(0))


# A task that has been learnt before ----------------------------------------------------------------------------


def test_rows_of_another_form_than_the_first_are_bad_rows(data) -> None:
    stray = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    own = data([*GOOD, stray, stray], skip_bad_rows=True)
    assert not own.form.chat
    assert sum(own.left_out.values()) == 2


def test_a_known_task_keeps_its_form(data) -> None:
    known = data(TICKETS, templates=TEMPLATES).form
    few = data(TICKETS[:1], known=known)
    assert few.form == known  # one row alone would be free text
    assert few.items[0].prompt.startswith("Ticket:")
    more = data([*TICKETS, {"text": "who", "team": "reception"}], known=known)
    assert more.form.labels == ("it", "office", "reception")
    assert data(GOOD, known=known, templates=("{prompt}", "{completion}")).items[0].prompt == "Say 0:"


def test_a_known_task_s_form_is_not_replaced_unless_that_is_said(data) -> None:
    known = data(TICKETS, templates=TEMPLATES).form
    told = r"completion, prompt; the task has been learnt as 'Ticket: {text}\\nTeam:' -> '{team}': .* --prompt and --t"
    with pytest.raises(HimalayaError, match=told):
        data(GOOD, known=known)
    said = {"messages": [CONVERSATION, {"role": "assistant", "content": "hi"}]}
    with pytest.raises(HimalayaError, match="the columns messages; the task has been learnt as"):
        data([said], known=known)
    chat = data([said]).form
    assert data([said], known=chat).form.chat
    with pytest.raises(HimalayaError, match="the task has been learnt as conversations"):
        data(GOOD, known=chat)


def test_the_metric_can_be_chosen(data) -> None:
    assert data(TICKETS, templates=TEMPLATES, metric="exact_match").form.labels == ()
    rows = [{"prompt": f"Say {n}:", "completion": str(n)} for n in range(30)]
    assert len(data(rows, metric="accuracy").form.labels) == 30
    with pytest.raises(HimalayaError, match="unknown metric 'acc'; did you mean 'accuracy'"):
        data(rows, metric="acc")


def test_a_known_task_keeps_its_labels_under_any_metric_of_labels(data) -> None:
    rows = [{"prompt": f"Class of {n}:", "completion": ("red", "green", "blue")[n % 3]} for n in range(60)]
    known = data(rows).form
    assert known.labels == ("blue", "green", "red")
    two = [row for row in rows if row["completion"] != "blue"]
    assert data(two, known=known, metric="macro_f1").form == replace(known, metric="macro_f1")
    free = [{"prompt": f"Name {n}:", "completion": f"person {7 * n}"} for n in range(40)]
    known = data(free).form
    for metric in ("accuracy", "macro_f1", "exact_match"):
        assert data(free[:2], known=known, metric=metric).form == replace(known, metric=metric)


def test_a_label_is_the_same_in_either_unicode_form(data) -> None:
    composed, apart = (unicodedata.normalize(form, "Zürich") for form in ("NFC", "NFD"))
    names = [(composed, "Bern", apart, "Bern")[n % 4] for n in range(40)]
    rows = [{"prompt": f"City {n}:", "completion": name} for n, name in enumerate(names)]
    mixed = data(rows)
    assert mixed.form.labels == ("Bern", composed)
    assert {item.target for item in mixed.items} == {"Bern", composed}
    assert data(rows[2:3], known=mixed.form, new_labels=False).items[0].target == composed
    earlier = replace(mixed.form, labels=("Bern", apart))  # as it was written before
    assert data(rows, known=earlier, new_labels=False).form.labels == ("Bern", composed)


def test_whether_answers_are_lines_is_what_the_task_has_learnt(data) -> None:
    line, lines = ({"prompt": "a", "completion": text} for text in ("b", "b\nb"))

    def are_lines(known: Form, *rows: dict[str, str]) -> bool:
        own = data([*rows], known=known)
        return own.scored("task", own.items).answers_are_lines

    form = data(GOOD).form
    assert [are_lines(replace(form, lines=told), line, lines) for told in (True, False, None)] == [True, False, False]
    assert [are_lines(replace(form, lines=told), line) for told in (True, False, None)] == [True, False, True]
    for told, expected in ((True, True), (False, False)):  # of earlier answers
        own = data(GOOD, known=replace(form, lines=told))
        assert hold_out(own, "mine.jsonl", "task", HeldOut(0))[0].answers_are_lines is expected
