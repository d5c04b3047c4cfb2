"""Readers: real bytes in, rows out, and one clear line for content that is not theirs."""

import bz2
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.readers import BadRow, read_file

ROWS = [{"text": "Grüße, Welt", "label": "a"}, {"text": 'two\nlines "quoted"', "label": "b"}]


def rows(reader: str, content: bytes, name: str, **options: object) -> list[dict[str, object]]:
    return list(read_file(content, name, reader, options))


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


JSONL = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode() + b"\n\n"
CSV = 'text,label\n"Grüße, Welt",a\n"two\nlines ""quoted""",b\n'.encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", JSONL),
        ("rows.json", json.dumps(ROWS).encode()),
        ("rows.csv", CSV),
        ("rows.csv", b"\xef\xbb\xbf" + CSV),
        ("rows.tsv", CSV.replace(b"text,label", b"text\tlabel").replace(b'",a', b'"\ta').replace(b'",b', b'"\tb')),
        ("rows.parquet", parquet()),
        ("ROWS.JSONL", JSONL),
        ("rows.jsonl.gz", gzip.compress(JSONL, mtime=0)),  # no date: parallel processes name their tests alike
        ("rows.csv.bz2", bz2.compress(CSV)),
    ],
)
def test_tables_of_every_format_hold_the_same_rows(name: str, content: bytes) -> None:
    assert rows("table", content, name) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"a": 1}\n{"a": ', "line 2"),
        ("rows.jsonl", b"[1]\n", "record 1 is not an object"),
        ("rows.csv.bz2", bz2.compress(CSV)[:-9], "cannot read rows.csv"),
        ("rows.jsonl.gz", b"no gzip", "cannot read .*rows.jsonl"),
        ("rows.parquet", b"PAR1 half", "cannot read rows.parquet"),
        *(
            (name, 'text,label\n{"a": "é"}'.encode(encoding), f"cannot read {name} as table: it is not UTF-8, but")
            for name in ("rows.jsonl", "rows.csv", "rows.json")
            for encoding in ("utf-16", "utf-16-le")
        ),
        ("rows.csv", b'id,text,team\n1,a,x\n2,"server 10 is down,dev\n3,b,y\n', "record that begins in line 3: unexp"),
        ("rows.csv", b'id,text,team\n1,"a,x\n2,b,y\n3,"c",z\n', "the record that begins in line 2: ',' expected"),
        ("rows.csv", b"id,text,text\n1,a,x\n", "rows.csv as table: key 'text' stands twice"),
        ("rows.tsv", b'id\ttext\n1\t"a"b\n', "begins in line 2"),
        ("rows.jsonl", b'{"a": 1, "a": 2}', "line 1 of rows.jsonl: key 'a' stands twice"),
        ("rows.json", b'{"a": 1}', "it is not a list of objects"),
        ("rows.json", b"7", "it is not a list of objects"),
        ("rows.jsonl", b"[" * 100_000, "cannot read .*rows.jsonl"),
        ("rows.jsonl.gz", gzip.compress(JSONL, mtime=0)[:20] + b"\xff" * 20, "cannot read .*rows.jsonl"),
        ("rows.xlsx", b"", "cannot read rows.xlsx as table: known endings are .jsonl"),
    ],
)
def test_unreadable_tables(name: str, content: bytes, message: str) -> None:
    with pytest.raises(HimalayaError, match=message) as error:
        rows("table", content, name)
    assert "\n" not in str(error.value)


PO = """msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "Save"
msgstr "Enregistrer"

#, fuzzy
msgid "Unsure"
msgstr "Incertain"

msgid "Untranslated"
msgstr ""

msgid "one\\n"
"two"
msgstr "un\\n"
"deux"

msgid "%d day"
msgid_plural "%d days"
msgstr[0] "%d jour"
msgstr[1] "%d jours"
"""


def test_tables_and_cells_of_any_size() -> None:
    rows = [{"id": "x" * 200_000, "text": "a"}, *({"id": str(n), "text": "b"} for n in range(70_000))]
    table = "".join(f"{row['id']},{row['text']}\n" for row in rows)
    for name, content in (("rows.json", json.dumps(rows)), ("rows.csv", f"id,text\n{table}")):
        assert list(read_file(content.encode(), name)) == rows


def test_a_row_has_the_fields_of_the_header_or_is_reported() -> None:
    content = b"id,text,team\n3,server 3 is down, again,answer 3\n\n4,b\n5,c,z\n"
    first, second, good = rows("table", content, "rows.csv")
    assert isinstance(first, BadRow)
    assert (first.reason, str(first)) == ("other number of fields", "(line 2) has 4 fields, the header has 3")
    assert str(second) == "(line 4) has 2 fields, the header has 3"
    assert good == {"id": "5", "text": "c", "team": "z"}


def test_translations_keep_finished_single_lines() -> None:
    found = rows("gettext_messages", PO.encode(), "app/locale/fr/LC_MESSAGES/app.po")
    assert found == [{"message": "Save", "translation": "Enregistrer", "language": "fr"}]


def test_blank_translations_are_no_translations() -> None:
    assert rows("gettext_messages", b'msgid "Save"\nmsgstr " "\n', "x.po") == []


def test_english_from_the_comment() -> None:
    catalogue = """#. Default: "Your \\"name\\""
msgid "label_name"
msgstr "Ihr Name"

msgid "label_nothing"
msgstr "Nichts"

msgid "Plain text"
msgstr "Text"
"""
    found = rows("gettext_messages", catalogue.encode(), "de/LC_MESSAGES/x.po", english="comment")
    assert [row["message"] for row in found] == ['Your "name"', "Plain text"]
    with pytest.raises(HimalayaError, match="option 'english' for x: Input should be 'message' or 'comment'"):
        rows("gettext_messages", b"", "x", english="id")


def test_unreadable_translations() -> None:
    with pytest.raises(HimalayaError, match=r"cannot read x\.po as gettext_messages"):
        rows("gettext_messages", b"this is\nno catalogue\n", "x.po")


SOURCE = '''
class Box:
    def __init__(self):
        self.size = 1

    @property
    def doubled_size(self):
        """Twice the size.

        More.
        """
        # A comment stays.
        return 2 * self.size

    def later(self):
        pass

    def only_words(self):
        """Nothing else."""

    def short(self): return 1
'''


def test_functions_lose_name_decorator_and_docstring() -> None:
    (found,) = rows("python_functions", SOURCE.encode(), "shapes/solid/box.py")
    assert found == {
        "name": "doubled_size",
        "code": "def f(self):\n    return 2 * self.size",
        "signature": "def doubled_size(self):",
        "body": "return 2 * self.size",
        "summary": "Twice the size.",
        "file": "shapes/solid/box.py",
        "package": "shapes.solid",
    }


def test_functions_with_or_without_docstring() -> None:
    source = b'def one(a,\n        b):\n    """Doc."""\n    x = a\n    return x + b\n\ndef two():\n    return 2\n'
    (with_one,) = rows("python_functions", source, "x.py", documented=True)
    (without,) = rows("python_functions", source, "x.py", documented=False)
    assert (with_one["signature"], with_one["body"]) == ("def one(a,\n        b):", "x = a\nreturn x + b")
    assert without["code"] == "def f():\n    return 2"
    with pytest.raises(HimalayaError, match=r"option 'documented' for x\.py: Input should be a valid boolean"):
        rows("python_functions", source, "x.py", documented="yes")


def test_unreadable_python() -> None:
    with pytest.raises(HimalayaError, match=r"cannot read bad\.py as python_functions"):
        rows("python_functions", b"def (:", "bad.py")


def assistant(sentence: str, **lists: object) -> bytes:
    intents = {"TurnOn": {"data": [{"sentences": [sentence]}]}}
    rules = {"on": "(on|up)", "loop": "<loop>"}
    return json.dumps({"intents": intents, "lists": lists, "expansion_rules": rules}).encode()


def sentences(
    template: str, count: int = 400, fill: dict[str, list[str]] | None = None, **lists: object
) -> set[object]:
    found = rows("assistant_sentences", assistant(template, **lists), "x", sentences_per_intent=count, fill=fill or {})
    return {row["sentence"] for row in found}


def test_sentence_grammar() -> None:
    assert sentences("turn[ it] <on>") == {"turn on", "turn it on", "turn up", "turn it up"}
    assert sentences("(a;b) c") == {"a b c", "b a c"}
    assert sentences("(a (b|c)|d)[e[f]]") == {x + y for x in ("a b", "a c", "d") for y in ("", "e", "ef")}
    assert sentences("to {level}", level={"range": {"from": 10, "to": 30, "step": 10}}) == {"to 10", "to 20", "to 30"}
    assert sentences("{state}", state={"values": [{"in": "(open|shut)"}, "ajar"]}) == {"open", "shut", "ajar"}


def test_open_lists_need_filling() -> None:
    assert sentences("light {area}", area={"wildcard": True}) == set()
    assert sentences("light {area}", fill={"area": ["hall", "attic"]}) == {"light hall", "light attic"}


def test_slots_become_fields() -> None:
    content = assistant("[light] {area:room}", area={"values": ["hall"]})
    found = rows("assistant_sentences", content, "x", sentences_per_intent=2, slot="room")
    assert {(row["intent"], row["template"], row["room"]) for row in found} == {
        ("TurnOn", "[light] {area:room}", "hall")
    }
    assert rows("assistant_sentences", content, "x", sentences_per_intent=2, slot="floor") == []


@pytest.mark.parametrize(
    ("template", "message"),
    [("<nowhere>", "unknown rule '<nowhere>'"), ("<loop>", "RecursionError"), ("(a|b", r"unbalanced '\('")],
)
def test_broken_sentence_templates(template: str, message: str) -> None:
    with pytest.raises(HimalayaError, match=message):
        sentences(template)


@pytest.mark.parametrize("options", [{}, {"sentences_per_intent": "many"}, {"sentences_per_intent": 1, "fill": ["x"]}])
def test_broken_assistant_options(options: dict[str, object]) -> None:
    with pytest.raises(HimalayaError, match=r"option '.*' for x: "):
        rows("assistant_sentences", assistant("a"), "x", **options)


def test_not_a_file_of_assistant_sentences() -> None:
    with pytest.raises(HimalayaError, match="cannot read x as assistant_sentences: KeyError 'lists'"):
        rows("assistant_sentences", b'{"intents": {}}', "x", sentences_per_intent=1)


def test_matches_of_a_pattern() -> None:
    text = "cat K AE T\n# no\nÄrger E R\n".encode()
    pattern = r"^(?P<word>\w+) (?P<sounds>[A-Z ]+)(?P<rest>!)?$"
    assert rows("matches", text, "a/words.txt", pattern=pattern) == [
        {"word": "cat", "sounds": "K AE T", "rest": "", "file": "a/words.txt"},
        {"word": "Ärger", "sounds": "E R", "rest": "", "file": "a/words.txt"},
    ]


def test_matches_over_continued_lines() -> None:
    text = b"run a \\\n    --one 1\\\n  --two 2\nrun b\n"
    found = rows("matches", text, "x", pattern="^(?P<line>run.*)$", continuation="\\")
    assert [row["line"] for row in found] == ["run a --one 1 --two 2", "run b"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "option 'pattern' for x: Missing"),
        (b"", {"pattern": "(?P<a>"}, "option 'pattern' for x: Input should be a valid regular expression"),
        (b"\xff", {"pattern": "(?P<a>.)"}, "cannot read x as matches"),
    ],
)
def test_mistakes_in_a_pattern(content: bytes, options: dict[str, object], message: str) -> None:
    with pytest.raises(HimalayaError, match=message):
        rows("matches", content, "x", **options)


def chat(content: str, ideal: object) -> bytes:
    return json.dumps({"input": [{"content": "be brief"}, {"content": content}], "ideal": ideal}).encode() + b"\n\n"


def test_chat_samples() -> None:
    content = (
        chat("classify: two\nlines", ["[a, b]", "[b, a]"]) + chat("other: x", "[c]") + chat("classify: y", "none")
    )
    assert [row["answer"] for row in rows("chat_samples", content, "x")] == ["[a, b]", "[c]", "none"]
    taken = rows("chat_samples", content, "x", question="classify: (?P<text>.+)", answer=r"\[(?P<names>.+)\]")
    assert taken == [{"text": "two\nlines", "names": "a, b"}]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b'{"input": []}', {}, "record 1 of x is not a chat sample"),
        (b"[1]", {}, "record 1 of x is not a chat sample"),
        (b"\n{", {}, "cannot read line 2 of x: "),
        (b"\n\xff", {}, "cannot read x as chat_samples"),
        (chat("a", 5), {}, "record 1 of x is not a chat sample"),
        (chat("a", []), {}, "record 1 of x is not a chat sample"),
        (b"", {"answer": "("}, "option 'answer' for x: "),
        (b"", {"question": 3}, "option 'question' for x: "),
    ],
)
def test_mistakes_in_chat_samples(content: bytes, options: dict[str, object], message: str) -> None:
    with pytest.raises(HimalayaError, match=message):
        rows("chat_samples", content, "x", **options)
