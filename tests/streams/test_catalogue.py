"""A user's own stream from local files, and every mistake that one can make in it."""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from himalaya_adapter.cli import main
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams import Limits, load_stream, stream_names
from himalaya_adapter.streams.catalogue import load_task, read_definition
from himalaya_adapter.streams.task import SPLITS

ROWS = [{"id": str(n // 2), "text": f"number {n}", "parity": "even" if n % 2 == 0 else "odd"} for n in range(200)]
ENTRY: dict[str, Any] = {
    "name": "parity",
    "language": "en",
    "kind": "classification",
    "source": {"files": "rows.jsonl", "group": "id"},
    "template": "Text: {text}\nParity: ",
    "target": "{parity}",
    "labels": ["even", "odd"],
    "metric": "accuracy",
    "max_new_tokens": 3,
}
Writer = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes ``rows.jsonl`` and a stream of one task (``ENTRY`` with changes, ``None`` removes); returns its path."""

    def write(rows: list[dict[str, Any]] = ROWS, **changes: Any) -> str:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        entry = {key: value for key, value in (ENTRY | changes).items() if value is not None}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"name": "mine", "tasks": [entry]}), encoding="utf-8")
        return str(path)

    return write


def test_a_task_from_jsonl_needs_no_code(write: Writer) -> None:
    stream = load_stream(write())
    (task,) = stream.tasks
    assert (stream.name, task.name) == ("mine", "parity")
    assert sum(len(task.split(split)) for split in SPLITS) == 200
    assert task.train[0].prompt.startswith("Text: number ")
    assert task.train[0].prompt.endswith("\nParity:"), "no trailing space"
    assert {item.target for item in task.train} == {"even", "odd"}
    assert not {item.source for item in task.train} & {item.source for item in task.test}


def test_the_same_from_csv_has_the_same_hashes(write: Writer, tmp_path: Path) -> None:
    from_jsonl = load_stream(write()).tasks[0].hashes
    lines = ["id,text,parity", *(f"{row['id']},{row['text']},{row['parity']}" for row in ROWS)]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    assert load_stream(write(source={"files": "rows.csv", "group": "id"})).tasks[0].hashes == from_jsonl
    absolute = {"files": str(tmp_path / "*.csv"), "group": "id"}
    assert load_stream(write(source=absolute)).tasks[0].hashes == from_jsonl


def test_caps_and_limits_take_the_smaller(write: Writer) -> None:
    path = write(caps={"train": 20, "test": 9})
    task = load_stream(path).tasks[0]
    assert (len(task.train), len(task.test)) == (20, 9)
    limited = load_stream(path, limits=Limits(train=5, validation=4, test=50)).tasks[0]
    assert (len(limited.train), len(limited.validation), len(limited.test)) == (5, 4, 9)
    assert limited.train == task.train[:5]
    assert limited.hashes["test"] == task.hashes["test"] != limited.hashes["train"]


def test_filters_labels_and_lengths(write: Writer) -> None:
    kept = [str(number) for number in range(60)]
    path = write(
        labels={"even": "pair", "odd": "impair"},
        source=ENTRY["source"] | {"where": {"id": kept, "parity": "odd"}},
        max_prompt_characters=len("Text: number 99\nParity:"),
    )
    task = load_stream(path).tasks[0]
    found = {(item.target, item.prompt) for split in SPLITS for item in task.split(split)}
    assert found == {("impair", f"Text: number {n}\nParity:") for n in range(1, 100, 2)}, "119 is kept but too long"


def test_parts_are_disjoint_and_complete(write: Writer) -> None:
    def prompts(part: str) -> set[str]:
        task = load_stream(write(source=ENTRY["source"] | {"part": part})).tasks[0]
        return {item.prompt for split in SPLITS for item in task.split(split)}

    parts = [prompts(f"{number}/3") for number in (1, 2, 3)]
    assert min(map(len, parts)) > 40
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(prompts("1/1")) == 200


def test_label_noise_is_in_the_training_labels_only(write: Writer) -> None:
    clean, noisy = load_stream(write()).tasks[0], load_stream(write(label_noise=0.25)).tasks[0]
    assert (noisy.validation, noisy.test) == (clean.validation, clean.test)
    assert [(item.prompt, item.source) for item in noisy.train] == [(item.prompt, item.source) for item in clean.train]
    wrong = [one for one, other in zip(noisy.train, clean.train, strict=True) if one.target != other.target]
    assert {item.target for item in wrong} == {"even", "odd"}
    assert 0.15 < len(wrong) / len(clean.train) < 0.35
    assert noisy.hashes["train"] != clean.hashes["train"]


def test_forbidden_words_leave_items_out(write: Writer) -> None:
    task = load_stream(write(forbidden_words=["NUMBER 1", "9"])).tasks[0]
    found = {item.prompt.split()[2] for split in SPLITS for item in task.split(split)}
    assert found == {str(n) for n in range(200) if not str(n).startswith("1") and "9" not in str(n)}


def test_like_starts_from_a_packaged_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    changes = {"name": "rooms", "source": {"options": {"slot": "name"}}, "caps": {"test": 5}}
    path.write_text(yaml.safe_dump({"tasks": [{"like": "demo_stream_6/room_extraction"} | changes]}), encoding="utf-8")
    (spec,) = read_definition(str(path)).tasks
    (base,) = (spec for spec in read_definition("demo_stream_6").tasks if spec.name == "room_extraction")
    assert (spec.name, spec.template, spec.caps) == ("rooms", base.template, Limits(train=400, validation=100, test=5))
    assert spec.source.options == {**base.source.options, "slot": "name"}


def test_labels_and_filters_beside_like_are_the_only_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    entries = [
        {"like": "demo_stream_6/film_verdict", "labels": {"pos": "good", "neg": "bad"}},
        {"like": "package_stream_25/noun_gender", "source": {"where": {}}},
        {"like": "package_stream_25/noun_gender", "name": "other", "source": {"where": {"pos": "Verb"}}},
    ]
    path.write_text(yaml.safe_dump({"tasks": entries}), encoding="utf-8")
    verdict, gender, other = read_definition(str(path)).tasks
    assert {*verdict.labels} == {"good", "bad"}
    assert (gender.source.where, gender.source.archive) == ({}, other.source.archive)
    assert other.source.where == {"pos": ("Verb",)}


def test_the_card_tells_origin_labels_and_examples(write: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    path = write()
    assert main(["data", "show", path, "parity"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "source local files: rows.jsonl" in lines
    assert sum(line.startswith("example: ") for line in lines) == 3
    counts = Counter(item.target for item in load_task(path, "parity").train)
    (train,) = [line for line in lines if line.startswith("train: ")]
    assert train.endswith(f"(even {counts['even']}, odd {counts['odd']})")


def test_brackets_and_colons_of_a_description_are_listed(write: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", write(name="a", description="[b] or [/c] :+1:")]) == 0
    assert "[b] or [/c] :+1:" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"template": "Text: {txt}"},
            r"unknown field in row 1 of rows.jsonl in task 'parity' 'txt'; did you mean 'text'",
        ),
        ({"target": "{label}"}, r"unknown field .* 'label'.*known: id, parity, text"),
        ({"source": {"files": "rows.jsonl", "group": "story"}}, "unknown field .* 'story'"),
        ({"template": "Text: {text.upper}"}, "'{text.upper}' is not a plain field name"),
        ({"template": "Text: {text!r}"}, "is not a plain field name"),
        ({"template": "Text: {}"}, "is not a plain field name"),
        ({"template": "Text: {text"}, "template 'Text: {text' of task 'parity'"),
        (
            {"labels": ["even", "uneven"]},
            "row 2 of rows.jsonl in task 'parity' has label 'odd'; known labels: even, uneven",
        ),
        ({"labels": ["even", " "]}, "'labels. ' of task 'parity' .* found \" \", expected two or more texts"),
        ({"labels": {"even": "e", "odd": ""}}, "'labels.odd' of task 'parity' .* found \"\", expected two"),
        ({"labels": [True, False]}, "found \\[true, false\\], expected .*quote them in YAML"),
        ({"labels": ["even"]}, "'labels' of .* expected two or more"),
        ({"labels": "even"}, 'found "even", expected two or more'),
        ({"labels": None}, "kind 'classification', which needs them"),
        ({"kind": "generation"}, "labels belong to kind 'classification'"),
        ({"kind": "clasification"}, "expected one of classification"),
        ({"metric": None}, "'metric' of task 'parity' of stream .*mine.yaml is missing"),
        ({"metrics": "accuracy"}, "unknown key .* 'metrics'; did you mean 'metric'"),
        ({"language": False}, r"'language' of task 'parity' .*quote it in YAML"),
        ({"forbidden_words": [None]}, "'forbidden_words' of .* found .null., expected a text, or a list of texts"),
        (
            {"source": {"files": "rows.jsonl", "group": "id", "where": {"id": [None]}}},
            "'source.where.id' .* found .null",
        ),
        (
            {"source": {"files": "rows.jsonl", "group": "id", "where": {"id": [1.10]}}},
            r"'source.where.id' .* found \[1.1\], expected fields, each with texts \(quote numbers\)",
        ),
        ({"max_new_tokens": 0}, "'max_new_tokens' .* found 0, expected a whole number of at least 1"),
        ({"max_new_tokens": True}, "expected a whole number"),
        ({"caps": {"dev": 3}}, "unknown key of task 'parity' .* 'caps.dev'"),
        ({"caps": 5}, "'caps' .* found 5, expected keys"),
        ({"source": {"files": "rows.jsonl"}}, "'source.group' .* is missing"),
        ({"source": {"files": "none*.jsonl", "group": "id"}}, "no file matches 'none\\*.jsonl' in /"),
        ({"source": {"files": "rows.jsonl", "group": "id", "reader": "tables"}}, "did you mean 'table'"),
        ({"source": {"files": "rows.jsonl", "group": "id", "archive": "djngo"}}, "did you mean 'django'"),
        ({"source": {"files": "rows.jsonl", "group": "id", "where": ["text"]}}, "'source.where' of task"),
        (
            {"source": {"files": "rows.jsonl", "group": "id", "options": {"slot": "x"}}},
            "option 'slot' for .*: Unexpected keyword",
        ),
        (
            {"source": {"files": "rows.jsonl", "group": "id", "where": {"id": ["no such"]}}},
            "'train' .* is empty \\(train 0, ",
        ),
        ({"max_prompt_characters": 3}, "is empty \\(train 0, "),
        ({"source": "rows.jsonl"}, "expected keys with values"),
        (
            {"source": ENTRY["source"] | {"part": "3/2"}},
            "'source.part' of .* found \"3/2\", expected which of how many parts",
        ),
        ({"source": ENTRY["source"] | {"part": 0.5}}, "'source.part' of .* found 0.5"),
        ({"label_noise": 1}, "'label_noise' of .* found 1, expected a share of at least 0 and below 1"),
        ({"label_noise": True}, "'label_noise' of .* found true"),
        ({"on_bad_item": "ignore"}, "found .ignore., expected one of stop, skip"),
        ({"kind": "generation", "labels": None, "label_noise": 0.1}, "has 'label_noise' but no labels"),
        ({"like": "demo_steam_6/film_verdict"}, "unknown stream in 'like: .* did you mean 'demo_stream_6'"),
        ({"like": "demo_stream_6/film"}, "unknown task in 'like: .* did you mean 'film_verdict'"),
    ],
)
def test_mistakes_in_an_entry(write: Writer, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HimalayaError, match=message) as error:
        load_stream(write(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x", "text": "one", "parity": " "}, "row 201 .* has an empty label"),
        ({"id": "x", "text": None, "parity": "odd"}, "row 201 .* has no value in field 'text'"),
        ({"id": "x", "parity": "odd"}, "unknown field in row 201 .* 'text'"),
    ],
)
def test_mistakes_in_a_row(write: Writer, row: dict[str, Any], message: str) -> None:
    with pytest.raises(HimalayaError, match=message):
        load_stream(write(rows=[*ROWS, row]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "row 201 .* has no value in field 'text'"),
        (-math.inf, "row 201 .* has no value in field 'text'"),
        (["one", "two"], "row 201 .* has a list in field 'text'; expected text or a number"),
        ({"one": 2}, "row 201 .* has a dict in field 'text'"),
        ("half \ud800", "row 201 .* has characters that are not UTF-8"),
    ],
)
def test_a_value_without_an_evident_text_is_a_bad_row(write: Writer, value: Any, message: str) -> None:
    rows = [*ROWS, {"id": "x", "text": value, "parity": "odd"}]
    with pytest.raises(HimalayaError, match=message):
        load_stream(write(rows=rows))
    assert sum(load_task(write(rows=rows, on_bad_item="skip"), "parity").skipped.values()) == 1


def test_a_csv_row_with_a_comma_too_many_is_a_bad_row(write: Writer, tmp_path: Path) -> None:
    lines = ["id,text,parity", *(f"{row['id']},{row['text']},{row['parity']}" for row in ROWS)]
    (tmp_path / "rows.csv").write_text("\n".join([*lines, "3,server 3 is down, again,odd"]), encoding="utf-8")
    source = {"files": "rows.csv", "group": "id"}
    with pytest.raises(HimalayaError, match=r"row 201 .* \(line 202\) has 4 fields, the header has 3"):
        load_stream(write(source=source))
    assert load_task(write(source=source, on_bad_item="skip"), "parity").skipped == {"other number of fields": 1}


def test_a_label_is_known_in_any_unicode_form(write: Writer) -> None:
    composed, apart = "Zürich", unicodedata.normalize("NFD", "Zürich")
    rows = [row | {"parity": apart if row["parity"] == "odd" else "Bern "} for row in ROWS]
    assert load_stream(write(rows=rows, labels=[composed, "Bern"])).tasks[0].spec.labels == (composed, "Bern")
    for twice in (["team", "team ", "dev"], [composed, apart, "Bern"], {"a": "x", "a ": "y"}):
        with pytest.raises(HimalayaError, match=r"'labels' of task .* expected two or more texts"):
            load_stream(write(labels=twice))


def test_only_stars_and_question_marks_are_wildcards_in_where(write: Writer) -> None:
    rows = [row | {"lang": "[en]" if row["parity"] == "odd" else "e"} for row in ROWS]

    def kept(value: str) -> set[str]:
        source = ENTRY["source"] | {"where": {"lang": [value]}}
        return {item.target for item in load_stream(write(rows=rows, source=source)).tasks[0].train}

    assert (kept("[en]"), kept("e*"), kept("[??]")) == ({"odd"}, {"even"}, {"odd"})


def test_a_filter_keeps_a_value_in_any_form(write: Writer) -> None:
    apart = unicodedata.normalize("NFD", "Zürich")
    rows = [row | {"city": "Zürich" if row["parity"] == "odd" else f"{apart} "} for row in ROWS]
    for pattern in ("Zürich", apart, " Z?rich", "*ü*"):
        task = load_stream(write(rows=rows, source=ENTRY["source"] | {"where": {"city": [pattern]}})).tasks[0]
        assert sum(len(task.split(split)) for split in SPLITS) == len(ROWS), pattern


def test_a_source_item_is_one_in_any_form(write: Writer) -> None:
    names = (lambda name: name, lambda name: unicodedata.normalize("NFD", name), lambda name: name.replace(" ", "  "))
    rows = [row | {"id": names[number % 3](f"café {number // 3}")} for number, row in enumerate(ROWS)]
    task = load_stream(write(rows=rows)).tasks[0]
    sources = [{item.source for item in task.split(split)} for split in SPLITS]
    assert sum(map(len, sources)) == len(set.union(*sources)) == math.ceil(len(ROWS) / 3)


def test_a_file_is_found_by_a_name_that_looks_like_a_pattern(write: Writer, tmp_path: Path) -> None:
    hashes = load_stream(write()).tasks[0].hashes
    (tmp_path / "rows.jsonl").rename(tmp_path / "rows [1].jsonl")
    path = Path(write(source={"files": "rows [1].jsonl", "group": "id"}))
    (tmp_path / "rows.jsonl").unlink()
    assert load_stream(str(path)).tasks[0].hashes == hashes


@pytest.mark.parametrize("name", ["हिन्दी", "ภาษาไทย", "عَرَبي", unicodedata.normalize("NFD", "café")])
def test_a_task_may_be_named_in_any_script(write: Writer, name: str) -> None:
    assert load_stream(write(name=name)).tasks[0].name == unicodedata.normalize("NFC", name)


def test_names_that_look_alike_are_one(write: Writer, tmp_path: Path) -> None:
    path = Path(write())
    entries = [ENTRY | {"name": unicodedata.normalize(form, "café")} for form in ("NFC", "NFD")]
    path.write_text(yaml.safe_dump({"tasks": entries}), encoding="utf-8")
    with pytest.raises(HimalayaError, match="has two tasks named 'café'"):
        load_stream(str(path))


def test_copies_that_differ_in_white_space_never_fall_into_two_splits(write: Writer) -> None:
    spaced = [row | {"id": f"copy {row['id']}", "text": row["text"].replace(" ", "  ")} for row in ROWS]
    task = load_stream(write(rows=[*ROWS, *spaced])).tasks[0]
    prompts = [" ".join(item.prompt.split()) for split in SPLITS for item in task.split(split)]
    assert len(prompts) == len(set(prompts)) == len(ROWS)
    assert task.skipped == {}


def test_prompts_with_different_targets_are_left_out_and_counted(write: Writer) -> None:
    other = {"even": "odd", "odd": "even"}
    wrong = [row | {"text": row["text"] + " ", "parity": other[row["parity"]]} for row in ROWS[:7]]
    task = load_task(write(rows=[*ROWS, *wrong]), "parity")
    assert task.skipped == {"prompt with different targets": 7}
    assert sum(len(task.split(split)) for split in SPLITS) == len(ROWS) - 7


def test_bad_rows_are_skipped_and_counted(write: Writer) -> None:
    bad = [
        *[{"id": "x", "text": "one", "parity": " "}] * 3,
        *[{"id": "x", "text": "one", "parity": "neither"}] * 2,
        {"id": "x", "text": None, "parity": "odd"},
        {"id": "x", "parity": "odd"},
    ]
    task = load_task(write(rows=[*ROWS, *bad], on_bad_item="skip"), "parity")
    assert sum(len(task.split(split)) for split in SPLITS) == 200
    assert task.skipped == {"empty": 3, "unknown label": 2, "no value": 1, "no field": 1}
    assert task.hashes == load_stream(write()).tasks[0].hashes


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_template_with_an_unknown_field_stops_anyway(write: Writer, policy: str) -> None:
    with pytest.raises(HimalayaError, match=r"unknown field in row 1 .* 'txt'"):
        load_stream(write(template="{txt}:", on_bad_item=policy))


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_line_in_another_encoding(write: Writer, tmp_path: Path, policy: str) -> None:
    stream = write(on_bad_item=policy)
    with open(tmp_path / "rows.jsonl", "ab") as file:
        file.write('{"id": "x", "text": "Ärger", "parity": "odd"}'.encode("latin-1"))
    if policy == "skip":
        assert load_task(stream, "parity").skipped == {"not UTF-8": 1}
    else:
        with pytest.raises(HimalayaError, match=r"row 201 of rows\.jsonl .* has characters that are not UTF-8"):
            load_stream(stream)


def test_when_all_rows_are_skipped_the_error_counts_them(write: Writer) -> None:
    rows = [row | {"parity": ""} for row in ROWS]
    with pytest.raises(HimalayaError, match=r"split 'train' of task 'parity' is empty \(.*skipped rows: 200 empty\)"):
        load_stream(write(rows=rows, on_bad_item="skip"))


def test_a_split_without_items(write: Writer) -> None:
    with pytest.raises(HimalayaError, match=r"split 'train' of task 'parity' is empty \(train 0, "):
        load_stream(write(rows=[row for row in ROWS if row["id"] == "0"]))


def test_unknown_stream_and_task(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(HimalayaError, match="unknown stream 'demo_steam_6'; did you mean 'demo_stream_6'"):
        load_stream("demo_steam_6")
    with pytest.raises(HimalayaError, match=r"unknown task .* 'partiy'; did you mean 'parity'"):
        load_task(write(), "partiy")
    with pytest.raises(HimalayaError, match=r"cannot read .*none\.yaml"):
        load_stream(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [", "cannot read"),
        ("tasks: []", "'tasks' of stream .*: found \\[\\], expected a list"),
        ("- a", 'stream .*: found \\["a"\\], expected keys'),
        ("tasks: [3]", "a task of stream .*: found 3, expected keys"),
        ("taks: 1\ntasks: [3]", "unknown key .* 'taks'; did you mean 'tasks'"),
        ("archives: {mine: {requirement: a==1}}\ntasks: [ENTRY]", "'archives.mine.sha256' of stream .* is missing"),
        (
            "archives: {mine: {ARCHIVE many}}\ntasks: [ENTRY]",
            "'archives.mine.megabytes' .* found \"many\", expected a n",
        ),
        *(
            (
                f"archives: {{mine: {{requirement: {pin}}}}}\ntasks: [ENTRY]",
                "'archives.mine.requirement' .* a pin, name==",
            )
            for pin in ("sample-data", "sample-data>=1", "sample-data==1 --pre", "../x==1")
        ),
        (
            "archives: {mine: {requirement: a==1, sha256: abc}}\ntasks: [ENTRY]",
            "'archives.mine.sha256' .* found \"abc\", expected 64 lower-case hexadecimal digits",
        ),
        ("tasks: [ENTRY, ENTRY]", "two tasks named 'parity'"),
        ("tasks: [NAMED ../parity]", "'name' of task '../parity' .* expected the name of a folder: letters"),
        ("tasks: [NAMED .parity]", "expected the name of a folder"),
        ("tasks: [NAMED de/en]", "expected the name of a folder"),
    ],
)
def test_mistakes_in_a_stream_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    text = re.sub(r"NAMED ([^]]+)", lambda found: json.dumps(ENTRY | {"name": found[1]}), text)
    text = text.replace("ARCHIVE", f"requirement: a==1, sha256: {'b' * 64}, licence: c, megabytes:")
    path.write_text(text.replace("ENTRY", json.dumps(ENTRY)), encoding="utf-8")
    with pytest.raises(HimalayaError, match=message) as error:
        load_stream(str(path))
    assert "\n" not in str(error.value)


def test_every_packaged_stream_is_well_formed() -> None:
    assert "demo_stream_6" in stream_names()
    for name in stream_names():
        definition = read_definition(name)
        assert definition.name == name
        assert definition.description
        assert all(spec.source.archive or spec.source.hub for spec in definition.tasks)
        definition.used_archives()
