"""The HTML reports: complete, self-contained, well-formed, and refused where runs do not belong together."""

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.report import write_comparison, write_run_report
from himalaya_adapter.report.growth import growth_table
from himalaya_adapter.report.metric_table import format_value
from himalaya_adapter.report.run_folder import read_run
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.stream_metrics import METRICS

SIX_TASKS = ["sarcasm", "verse_book_fr", "law_topic_pt", "docstring_to_name", "entities_de", "translate_en_es"]
VOID = {"meta", "img", "br", "link", "input", "hr"}
ELSEWHERE = re.compile(r"""(?:src|href|srcset|action)\s*=\s*(?!["']?data:)|url\(|@import|<script""")
NAMED_LIKE_TAGS = '<b>x</b> & "y" $z$'
RUN_FIGURES = {"retained_accuracy", "accuracy_matrix", "task_scores", "learning_by_position", "stored_bytes", "time"}
ATOM_FIGURES = {"gates_and_atoms", "norms", "growth", "room_left"}
MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """Checks that every tag is closed in order, and collects text and images."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text = ""
        self.images: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(str(dict(attrs)["src"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(path: Path) -> Page:
    html = path.read_text(encoding="utf-8")
    assert not ELSEWHERE.search(re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:", html))
    page = Page(html)
    for image in page.images:
        header, data = image.split(",")
        assert header == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG\r\n")
    return page


def topics(folder: Path, stem: str, suffix: str) -> set[str]:
    return {path.stem.removeprefix(f"{stem}_") for path in (folder / "figures").glob(f"*.{suffix}")}


def change(path: Path, **values: object) -> None:
    write_json(path, {**read_json(path), **values})


def assert_every_value_shown(page: Page, metrics: dict) -> None:
    for metric in METRICS:
        defined = len(metrics["tasks"]) > 1 or "of several tasks" not in metric.marks
        assert defined or metric.title not in page.text
        if defined and metrics[metric.key] is not None:
            assert metric.title in page.text
            assert format_value(metrics[metric.key], metric.kind) in page.text, metric.key
    for task in metrics["tasks"]:
        assert task["name"] in page.text
        for when in ("before", "after_learning", "final"):
            for key in ("score", "low", "high"):
                assert format_value(task[when][key], "score") in page.text, (task["name"], when, key)


def test_run_report_shows_every_value_and_every_figure(make_run: MakeRun) -> None:
    folder = make_run("himalaya_0", tasks=SIX_TASKS)
    path = write_run_report(folder)
    assert path == folder / "report.html"
    page = read_page(path)
    metrics = read_json(folder / "metrics.json")
    assert_every_value_shown(page, metrics)
    for task in metrics["tasks"]:
        assert all(format_value(task[how]["score"], "score") in page.text for how in ("unlabelled", "released"))
    assert topics(folder, "himalaya_0", "png") == topics(folder, "himalaya_0", "pdf") == RUN_FIGURES | ATOM_FIGURES
    assert len(page.images) == len(RUN_FIGURES | ATOM_FIGURES)
    environment = read_json(folder / "environment.json")
    assert environment["torch"] in page.text
    assert environment["cpu"] in page.text
    for hashes in environment["data_hashes"].values():
        assert all(digest[:16] in page.text for digest in hashes.values())
    assert "n = 600" in page.text
    assert (folder / "config.yaml").read_text() in page.text


def test_events_are_counted_task_by_task(make_run: MakeRun) -> None:
    folder = make_run("himalaya_0", tasks=SIX_TASKS)
    rows = growth_table(read_run(folder))
    names = [f"{number}. {task}" for number, task in enumerate(SIX_TASKS, start=1)]
    assert [row[0] for row in rows] == names
    # added, replaced, similarity (0.25 and 0.5), evicted, survives (0.875), dropped, free atoms and directions
    assert rows[0][1:] == ["1", "1", "0.375", "0", "0.875", "0", "13", "231", "–"]
    assert rows[2][1:] == ["1", "1", "0.385", "0", "0.875", "1", "7", "213", "–"]
    assert rows[5][1:] == ["1", "1", "0.400", "1", "0.500", "0", "0", "186", "–"]
    text = (folder / "events.jsonl").read_text(encoding="utf-8")
    warm = {"event": "warm_start", "index": 2, "task": SIX_TASKS[2], "step": 0, "from": 1, "loss": 2.0}
    (folder / "events.jsonl").write_text(json.dumps(warm) + "\n" + text, encoding="utf-8")
    assert [row[9] for row in growth_table(read_run(folder))] == ["–", "–", names[1], "–", "–", "–"]
    page = read_page(write_run_report(folder))
    assert all(text in page.text for text in ("Events, task by task", "0.385", "213", "Warm start from"))


def test_dropped_steps_are_shown_for_every_method(make_run: MakeRun) -> None:
    folder = make_run("lora_0", tasks=SIX_TASKS, method="lora", method_name="LoRA r=8")
    assert growth_table(read_run(folder)) == []
    text = (folder / "events.jsonl").read_text(encoding="utf-8")
    dropped = {"event": "skipped_step", "index": 1, "task": SIX_TASKS[1], "step": 7}
    (folder / "events.jsonl").write_text(json.dumps(dropped) + "\n" + text, encoding="utf-8")
    assert [row[6] for row in growth_table(read_run(folder))] == ["0", "1", "0", "0", "0", "0"]
    assert "Events, task by task" in read_page(write_run_report(folder)).text


def test_report_of_a_method_without_atoms_leaves_their_rows_and_figures_out(make_run: MakeRun) -> None:
    folder = make_run("lora_0", tasks=SIX_TASKS, method="lora", method_name="LoRA r=8")
    page = read_page(write_run_report(folder))
    assert topics(folder, "lora_0", "png") == RUN_FIGURES
    for title in ("Largest update norm", "Largest atom norm", "Gates and atoms", "Norms", "Room left"):
        assert title not in page.text


def test_report_of_one_task_leaves_out_what_needs_two(make_run: MakeRun) -> None:
    folder = make_run("single", tasks=["sarcasm"])
    page = read_page(write_run_report(folder))
    assert_every_value_shown(page, read_json(folder / "metrics.json"))
    assert topics(folder, "single", "png") == RUN_FIGURES | ATOM_FIGURES
    assert "Backward transfer" not in page.text


def test_names_with_markup_are_escaped(make_run: MakeRun) -> None:
    first = make_run("a<i>&b", tasks=[NAMED_LIKE_TAGS, "other"], method_name=NAMED_LIKE_TAGS)
    second = make_run("c", tasks=[NAMED_LIKE_TAGS, "other"], method="lora", method_name=NAMED_LIKE_TAGS)
    pages = [write_run_report(first), write_comparison(first.parent, [first.name, second.name], first.parent / "out")]
    for path in pages:
        assert "<b>x" not in path.read_text(encoding="utf-8")
        assert "<i>&b" not in path.read_text(encoding="utf-8")
        page = read_page(path)
        assert NAMED_LIKE_TAGS in page.text
        assert "a<i>&b" in page.text
    assert "<b>" not in (first.parent / "out" / "tables.md").read_text(encoding="utf-8")


def test_half_a_line_and_a_repeated_task_among_the_events_change_nothing(make_run: MakeRun) -> None:
    folder = make_run("run", tasks=SIX_TASKS)
    whole = read_run(folder)
    events = folder / "events.jsonl"
    text = events.read_text(encoding="utf-8")
    first = next(event for event in map(json.loads, text.splitlines()) if event["event"] == "task_end")
    interrupted = json.dumps({**first, "train_seconds": 0.5}) + '\n{"event": "task_e\n'
    events.write_text(interrupted + text, encoding="utf-8")
    assert read_run(folder) == whole


# An adapter whose config names no bound has the letter's, 1.
@pytest.mark.parametrize("bound", [None, 0.5, 2.0])
def test_norm_above_its_bound_is_called_out(bound: float | None, make_run: MakeRun) -> None:
    folder = make_run("run", tasks=SIX_TASKS[:2])
    if bound is not None:
        change(folder / "adapter" / "adapter_config.json", norm_bound=bound)
    most = bound or 1.0
    change(folder / "metrics.json", update_norm_max=most + 0.01)
    page = read_page(write_run_report(folder))
    assert f"{most + 0.01:.3f} above the bound" in page.text
    assert page.text.count("above the bound") == 1  # the atoms are within theirs
    change(folder / "metrics.json", update_norm_max=most + 1e-5)  # rounding
    assert "above the bound" not in read_page(write_run_report(folder)).text


def test_comparison_writes_page_tables_figures_and_json(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run("himalaya", tasks=SIX_TASKS),
        make_run("lora", tasks=SIX_TASKS, method="lora", method_name="LoRA r=8", forgetting_rate=0.03),
    ]
    output = tmp_path / "comparison"
    page = read_page(write_comparison(tmp_path, ["himalaya", "lora"], output))
    metrics = {folder.name: read_json(folder / "metrics.json") for folder in runs}
    markdown = (output / "tables.md").read_text(encoding="utf-8")
    for run_id in metrics:
        assert_every_value_shown(page, metrics[run_id])
        assert format_value(metrics[run_id]["retained_accuracy_auc"], "score") in markdown
    assert read_json(output / "aggregated_metrics.json")["runs"] == metrics
    shared = {"retained_accuracy", "task_scores", "learning_by_position", "stored_bytes", "norms", "time"}
    paired = {"paired_differences", "task_differences"}
    expected = shared | paired | {"room_left", "accuracy_matrix_1", "accuracy_matrix_2"}
    assert topics(output, "himalaya_vs_lora", "png") == topics(output, "himalaya_vs_lora", "pdf") == expected


def test_comparison_of_twenty_five_tasks_and_three_methods(make_run: MakeRun, tmp_path: Path) -> None:
    tasks = [f"task_{number}" for number in range(25)]
    for method in ("himalaya", "lora", "an_unknown_method"):
        make_run(f"{method}_with_a_rather_long_run_id_of_its_own", tasks=tasks, method=method, method_name=method)
    run_ids = sorted(path.name for path in tmp_path.iterdir())
    page = read_page(write_comparison(tmp_path, run_ids, tmp_path / "out"))
    assert all(task in page.text for task in tasks)
    stems = {path.name[:6] for path in (tmp_path / "out" / "figures").iterdir()}
    assert stems == {"3_runs"}  # the joined ids would be too long for a file name


def test_comparison_refuses_runs_that_were_not_measured_alike(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", tasks=SIX_TASKS)
    make_run("other_backbone", tasks=SIX_TASKS, backbone="llama-2-7b")
    make_run("other_stream", tasks=SIX_TASKS, stream="full_stream_25")
    make_run("other_order", tasks=SIX_TASKS[::-1])
    environment = make_run("other_data", tasks=SIX_TASKS) / "environment.json"
    hashes = read_json(environment)["data_hashes"]
    hashes["sarcasm"]["test"] = "0" * 64
    change(environment, data_hashes=hashes)
    change(make_run("no_hashes", tasks=SIX_TASKS) / "environment.json", data_hashes={})
    config = make_run("other_length", tasks=SIX_TASKS) / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "dataset.max_seq_length: 64\n", encoding="utf-8")
    for run_id, reason in {
        "other_backbone": "backbone 'smollm2-135m' against 'llama-2-7b'",
        "other_stream": "stream 'demo_stream_6' against 'full_stream_25'",
        "other_order": "same order",
        "other_data": "test items of 'sarcasm' differ",
        "no_hashes": "'no_hashes' has no hash",
        "other_length": "dataset.max_seq_length 512 against 64",
    }.items():
        with pytest.raises(HimalayaError, match=reason) as caught:
            write_comparison(tmp_path, ["a", run_id], tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("run_ids", "reason"),
    [
        ([], "no runs to compare"),
        (["himalaya", "himalaya"], "'himalaya' is named more than once"),
        (["himalaia"], "did you mean 'himalaya'"),
        (["himalaya", "unfinished"], "'unfinished' is not finished"),
    ],
)
def test_comparison_refuses_bad_run_ids(make_run: MakeRun, tmp_path: Path, run_ids: list[str], reason: str) -> None:
    make_run("himalaya", tasks=["sarcasm"])
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(HimalayaError, match=reason):
        write_comparison(tmp_path, run_ids, tmp_path / "out")


def test_run_report_refuses_missing_unfinished_and_damaged_runs(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(HimalayaError, match="no run folder"):
        write_run_report(tmp_path / "nowhere")
    folder = make_run("run", tasks=SIX_TASKS)
    metrics = folder / "metrics.json"
    whole = metrics.read_text(encoding="utf-8")
    metrics.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(HimalayaError, match=r"metrics\.json is not valid JSON"):
        write_run_report(folder)
    metrics.write_text(whole, encoding="utf-8")
    change(metrics, format=2)
    with pytest.raises(HimalayaError, match="not in format 1"):
        write_run_report(folder)
    metrics.write_text(whole, encoding="utf-8")
    matrix = read_json(folder / "matrix.json")
    change(folder / "matrix.json", rows=matrix["rows"][:-1])
    with pytest.raises(HimalayaError, match="6 tasks but 5 rows"):
        write_run_report(folder)
    (folder / "matrix.json").unlink()
    with pytest.raises(HimalayaError, match=r"no matrix\.json"):
        write_run_report(folder)
    metrics.unlink()
    with pytest.raises(HimalayaError, match="not finished"):
        write_run_report(folder)
    assert not (folder / "report.html").exists()
