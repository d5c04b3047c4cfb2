"""The HTML reports: complete, self-contained, well-formed, and refused where runs do not belong together."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import Page
from safetensors.torch import save_file

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.identity import sealed
from himalaya_adapter.registry import METHODS
from himalaya_adapter.report import paper, write_comparison, write_run_report
from himalaya_adapter.report.charts import Figure, Heat
from himalaya_adapter.report.formats import format_value
from himalaya_adapter.report.palette import BOUND, FROZEN, OTHER_COLORS, PART_COLORS
from himalaya_adapter.report.run_folder import read_run
from himalaya_adapter.report.run_tables import events
from himalaya_adapter.report.table import TEMPLATES
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.stream_metrics import METRICS

SIX_TASKS = ["sarcasm", "verse_book_fr", "law_topic_pt", "docstring_to_name", "entities_de", "translate_en_es"]
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> & \'"$z$'
TEXT_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
MARK_CONTRAST = 3.0  # of graphics with what is behind them: 1.4.11
ONE_TASK = {"task_scores", "loss", "stored_bytes", "time"}
ONE_RUN = ONE_TASK | {"retained_accuracy", "accuracy_matrix", "learning_by_position"}
OF_A_DICTIONARY = {"atoms", "norms", "room_left"}
MakeRun = Callable[..., Path]


def change(path: Path, **values: object) -> None:
    write_json(path, {**read_json(path), **values})


def add_events(folder: Path, *events: dict[str, Any]) -> None:
    path = folder / "events.jsonl"
    lines = "".join(json.dumps(event) + "\n" for event in events)
    path.write_text(lines + path.read_text(encoding="utf-8"), encoding="utf-8")


def events_of(folder: Path) -> list[dict[str, str]]:
    """The rows of the table of events, by column."""
    found = []
    for table in events(read_run(folder)):
        names = [cell.text for cell in table.header]
        found += [dict(zip(names, (cell.text for cell in row), strict=True)) for row in table.rows]
    return found


def assert_every_value_shown(page: Page, metrics: dict[str, Any]) -> None:
    for metric in METRICS:
        defined = len(metrics["tasks"]) > 1 or "of several tasks" not in metric.marks
        assert defined or metric.title not in page.text
        if defined and metrics.get(metric.key) is not None:
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
    page = Page(path)
    metrics, matrix = read_json(folder / "metrics.json"), read_json(folder / "matrix.json")
    assert_every_value_shown(page, metrics)
    for task in metrics["tasks"]:
        assert all(format_value(task[how]["score"], "score") in page.text for how in ("unlabelled", "released"))
    assert set(page.figures) == ONE_RUN | OF_A_DICTIONARY
    for cell in (*matrix["before"], *(cell for row in matrix["rows"] for cell in row)):
        assert any(abs(cell["score"] - number) < 1e-4 for number in page.numbers()), "shown where it is pointed at"
    environment = read_json(folder / "environment.json")
    assert environment["torch"] in page.text
    assert environment["cpu"] in page.text
    assert "n = 600" in page.text
    assert (folder / "config.yaml").read_text() in page.text
    assert not (folder / "figures").exists(), "only on demand"


def test_figures_for_papers_are_written_on_demand(make_run: MakeRun) -> None:
    folder = make_run("himalaya_0", tasks=SIX_TASKS[:2])
    page = Page(write_run_report(folder, figures=True))
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        files = sorted((folder / "figures").glob(f"*.{suffix}"))
        assert {file.stem.removeprefix("himalaya_0_") for file in files} == set(page.figures)
        assert all(file.read_bytes().startswith(start) for file in files)


def test_a_change_that_rounds_to_0_has_no_sign_on_paper() -> None:
    sheet = paper.draw(Figure("topic", "", "", [Heat([[-0.001, -0.26, 1.0]], ["a"], ["b", "c", "d"], signed=True)]))
    assert [text.get_text() for text in sheet.axes[0].texts] == [".00", "−.26", "1.00"]


def test_events_are_counted_task_by_task(make_run: MakeRun) -> None:
    folder = make_run("himalaya_0", tasks=SIX_TASKS)
    rows = events_of(folder)
    names = [f"{number}. {task}" for number, task in enumerate(SIX_TASKS, start=1)]
    assert [row["task"] for row in rows] == names
    assert rows[0] == {
        "task": names[0],
        **{"atom added": "1", "own atom replaced": "1", "slot of an earlier task evicted": "0"},
        **{"step dropped, not finite": "0", "similarity": "0.375", "survives": "0.875"},
    }
    assert rows[2]["step dropped, not finite"] == "1"
    assert (rows[5]["slot of an earlier task evicted"], rows[5]["survives"]) == ("1", "0.500")
    common = {"index": 2, "task": SIX_TASKS[2]}
    add_events(folder, {"event": "sharing", **common, "step": 60, "slot": 4, "similarity": 0.99})
    assert [row["slot shared"] for row in events_of(folder)] == ["0", "0", "1", "0", "0", "0"]
    assert "Events, task by task" in Page(write_run_report(folder)).text


def test_dropped_steps_are_shown_for_every_method(make_run: MakeRun) -> None:
    folder = make_run("lora_0", tasks=SIX_TASKS, method="lora", method_name="LoRA r=8")
    assert events_of(folder) == []
    add_events(folder, {"event": "skipped_step", "index": 1, "task": SIX_TASKS[1], "step": 7})
    assert [row["step dropped, not finite"] for row in events_of(folder)] == ["0", "1", "0", "0", "0", "0"]
    assert "Events, task by task" in Page(write_run_report(folder)).text


def test_loss_curves_are_drawn(make_run: MakeRun) -> None:
    folder = make_run("lora_0", tasks=SIX_TASKS[:2], method="lora")
    (chart,) = Page(write_run_report(folder)).figures["loss"]
    assert chart["series"][0]["points"] == [[15, 2.1], [45, 0.6], [None, None], [75, 2.1], [105, 0.6], [None, None]]
    last = read_run(folder).task_ends[-1]
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**last, "losses": [3.0, 2.0, 1.0]}) + "\n")
    (chart,) = Page(write_run_report(folder)).figures["loss"]
    assert chart["series"][0]["points"][3:] == [[70, 3], [90, 2], [110, 1], [None, None]]


def test_sample_answers_are_shown_before_after_and_now(make_run: MakeRun) -> None:
    folder = make_run("lora_0", tasks=SIX_TASKS[:2], method="lora")
    assert "Sample answers" not in Page(write_run_report(folder)).text
    item = {"prompt": "x" * 300 + HOSTILE, "target": "x_{i}", "answers": ["frozen answer", "learnt answer", "at last"]}
    samples = {"tasks": [{"task": task, "items": [item]} for task in SIX_TASKS[:2]]}
    write_json(folder / "samples.json", sealed(samples))
    page = Page(write_run_report(folder))
    assert all(page.text.count(text) == 2 for text in ("x_{i}", "frozen answer", "learnt answer", "at last", HOSTILE))
    assert "x" * 300 not in page.text, "the end of a long prompt"


def test_report_of_a_method_without_atoms_leaves_their_rows_and_figures_out(make_run: MakeRun) -> None:
    folder = make_run("lora_0", tasks=SIX_TASKS, method="lora", method_name="LoRA r=8")
    page = Page(write_run_report(folder))
    assert set(page.figures) == ONE_RUN
    for title in ("Largest update norm", "Largest atom norm", "Use of atoms", "Norms", "Room left"):
        assert title not in page.text


def test_report_of_one_task_leaves_out_what_needs_two(make_run: MakeRun) -> None:
    folder = make_run("single", tasks=["sarcasm"])
    page = Page(write_run_report(folder))
    assert_every_value_shown(page, read_json(folder / "metrics.json"))
    assert set(page.figures) == ONE_TASK | OF_A_DICTIONARY


def test_hostile_names_stay_text(make_run: MakeRun) -> None:
    tasks = [HOSTILE, "other"]
    first = make_run("a<i>&b", tasks=tasks, method_name=HOSTILE, stream=HOSTILE, backbone=HOSTILE)
    second = make_run("c", tasks=tasks, method="lora", method_name=HOSTILE, stream=HOSTILE, backbone=HOSTILE)
    add_events(first, {"event": "sharing", "index": 0, "task": HOSTILE, "step": 1, "slot": 4, "similarity": 0.99})
    pages = [write_run_report(first), write_comparison(first.parent, [first.name, second.name], first.parent / "out")]
    for path in pages:
        page = Page(path)  # two scripts, no attribute with a script, all tags closed
        assert "<img" not in page.html
        assert "<i>&b" not in page.html
        assert HOSTILE in page.text
        assert "a<i>&b" in page.text
        assert "</script" not in page.scripts[0]
        assert any(HOSTILE in name for name in page.figures["accuracy_matrix"][0]["columns"])
    assert "<script" not in (first.parent / "out" / "tables.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_from_what_is_behind_them(scheme: str) -> None:
    css = TEMPLATES.joinpath("report.css").read_text(encoding="utf-8").split("@media (prefers-color-scheme: dark)")
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", css[scheme == "dark"].split("}")[0]))
    for ink in ("ink", "muted", "bad"):
        for behind in ("page", "sheet", "tint"):
            assert contrast(colors[ink], colors[behind]) >= TEXT_CONTRAST, (ink, behind)
    assert contrast(colors["bound"], colors["sheet"]) >= TEXT_CONTRAST, "its name is text"
    own = [row.color for row in METHODS.values() if row.color is not None]
    for color in (*own, *OTHER_COLORS, *PART_COLORS, FROZEN, BOUND):
        assert contrast(color, colors["sheet"]) >= MARK_CONTRAST, color


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours ``#rrggbb``, from 1 to 21 (WCAG 2.2)."""
    dark, bright = sorted(map(luminance, (one, other)))
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


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
    page = Page(write_run_report(folder))
    assert f"{most + 0.01:.3f} above the bound" in page.text
    assert page.text.count("above the bound") == 1  # the atoms are within theirs
    change(folder / "metrics.json", update_norm_max=most + 1e-5)  # rounding
    assert "above the bound" not in Page(write_run_report(folder)).text


def test_comparison_writes_page_tables_and_json(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run("himalaya", tasks=SIX_TASKS),
        make_run("lora", tasks=SIX_TASKS, method="lora", method_name="LoRA r=8", forgetting_rate=0.03),
    ]
    output = tmp_path / "comparison"
    page = Page(write_comparison(tmp_path, ["himalaya", "lora"], output))
    metrics = {folder.name: read_json(folder / "metrics.json") for folder in runs}
    markdown = (output / "tables.md").read_text(encoding="utf-8")
    for run_id in metrics:
        assert_every_value_shown(page, metrics[run_id])
        assert format_value(metrics[run_id]["retained_accuracy_auc"], "score") in markdown
    aggregated = read_json(output / "aggregated_metrics.json")
    assert aggregated["runs"] == metrics
    assert "expected_results" not in aggregated
    assert set(page.figures) == {
        *("retained_accuracy", "paired_differences", "scores_by_method", "learning_by_position"),
        *("loss", "stored_bytes", "norms", "room_left", "time", "accuracy_matrix"),
    }
    for claim in yaml.safe_load((Path(__file__).parents[2] / "docs" / "expected_results.yaml").read_text())["claims"]:
        assert claim["claim"] not in page.text, "what this project's source says is nobody else's"


def test_many_tasks_and_methods_make_a_page_of_bounded_size(make_run: MakeRun, tmp_path: Path) -> None:
    tasks = [f"task_{number}" for number in range(25)]
    for method in ("himalaya", "lora", "lilac", "loreft", "an_unknown_method"):
        make_run(f"{method}_with_a_rather_long_run_id_of_its_own", tasks=tasks, method=method, method_name=method)
    run_ids = sorted(path.name for path in tmp_path.iterdir())
    page = Page(write_comparison(tmp_path, run_ids, tmp_path / "out"))
    assert all(task in page.text for task in tasks)
    assert len(page.html) < 400_000
    assert page.elements < 6_000
    assert page.html.count("accuracy_matrix") < 5, "one section for all matrices"


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
    matrix = make_run("other_metric", tasks=SIX_TASKS) / "matrix.json"
    matrix.write_text(matrix.read_text(encoding="utf-8").replace('"accuracy"', '"macro_f1"'), encoding="utf-8")
    asked = {"kind": "classification", "max_new_tokens": 4, "answers_are_lines": True}
    for run_id, labels in (("asked", ["yes", "no"]), ("other_labels", ["yes", "no", "perhaps"])):
        tasks = {task: {**asked, "labels": labels} for task in SIX_TASKS}
        change(make_run(run_id, tasks=SIX_TASKS, seed=1) / "environment.json", tasks=tasks)
    for run_id, reason in {
        "other_backbone": "backbone 'smollm2-135m' against 'llama-2-7b'",
        "other_stream": "stream 'demo_stream_6' against 'full_stream_25'",
        "other_order": "order of tasks",
        "other_data": "hash of the test items of 'sarcasm'",
        "no_hashes": "no_hashes is damaged .*sarcasm",
        "other_metric": "metric of '.*' 'accuracy' against 'macro_f1'",
        "other_length": "dataset.max_seq_length 512 against 64",
    }.items():
        with pytest.raises(HimalayaError, match=reason) as caught:
            write_comparison(tmp_path, ["a", run_id], tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(HimalayaError, match=r"labels of '.*' .*'perhaps'"):
        write_comparison(tmp_path, ["asked", "other_labels"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert write_comparison(tmp_path, ["a", "asked"], tmp_path / "out").is_file()


@pytest.mark.parametrize(
    ("run_ids", "reason"),
    [
        ([], "no runs to compare"),
        (["himalaya", "himalaya"], "'himalaya' and 'himalaya' are the same method"),
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
    with pytest.raises(HimalayaError, match=r"metrics\.json is damaged"):
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
    with pytest.raises(HimalayaError, match=r"cannot read .*matrix\.json"):
        write_run_report(folder)
    metrics.unlink()
    with pytest.raises(HimalayaError, match="not finished"):
        write_run_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "edit", "told"),
    [
        ("matrix.json", lambda c: c["rows"][2][1].update(score=9.25, high=9.5), r"9\.25 .* does not lie in \[0, 1\]"),
        ("matrix.json", lambda c: c["before"][0].update(low=-1.0), r"does not lie in \[0, 1\]"),
        (
            "matrix.json",
            lambda c: c["rows"][1][0].update(score=0.5, low=0.1, high=1.0),
            "says .* for retained_accuracy_auc",
        ),
        ("matrix.json", lambda c: c["rows"][1].__setitem__(1, "x"), "is damaged"),
        ("metrics.json", lambda c: c.update(average_accuracy=0.99), "says 0.99 for average_accuracy, from matrix"),
        ("metrics.json", lambda c: c["tasks"][3]["final"].update(score=0.9912), "says 0.9912 for docstring_to_name"),
    ],
)
def test_scores_that_cannot_be_or_do_not_follow_are_refused(
    make_run: MakeRun, name: str, edit: Callable[[Any], object], told: str
) -> None:
    folder = make_run("run", tasks=SIX_TASKS)
    read_run(folder)
    content = read_json(folder / name)
    edit(content)
    write_json(folder / name, content)
    with pytest.raises(HimalayaError, match=told):
        write_comparison(folder.parent, ["run"], folder.parent / "out")


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("metrics.json", lambda text: text.replace('"train_seconds": ', '"train_seconds": 1')),
        ("metrics.json", lambda text: text.replace('"seed": 0', '"seed": NaN')),
        ("matrix.json", lambda text: text.replace('"seconds": ', '"seconds": 1', 1)),
        ("samples.json", lambda text: text.replace("answer", "another answer")),
    ],
)
def test_what_a_run_has_written_and_was_edited_is_refused(
    make_run: MakeRun, name: str, edit: Callable[[str], str]
) -> None:
    folder = make_run("run", tasks=SIX_TASKS)
    item = {"prompt": "Is it?", "target": "yes", "answers": ["an answer", "no", "yes"]}
    write_json(folder / "samples.json", {"tasks": [{"task": SIX_TASKS[0], "items": [item]}]})
    for part in ("metrics.json", "matrix.json", "samples.json"):
        write_json(folder / part, sealed(read_json(folder / part)))
    write_run_report(folder)
    text = (folder / name).read_text(encoding="utf-8")
    assert edit(text) != text
    (folder / name).write_text(edit(text), encoding="utf-8")
    with pytest.raises(HimalayaError, match=rf"{name.split('.')[0]}|does not match its hash"):
        write_run_report(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples.json", {"tasks": []}),  # without its hash
        ("config.yaml", "- a list"),
    ],
)
def test_what_is_no_part_of_a_run_is_refused(make_run: MakeRun, name: str, content: Any) -> None:
    folder = make_run("run", tasks=SIX_TASKS)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    (folder / "release").mkdir(exist_ok=True)
    save_file({}, folder / "release" / "adapter_model.safetensors")
    with pytest.raises(HimalayaError, match="damaged"):
        write_run_report(folder)
