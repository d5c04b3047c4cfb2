"""The example of a user's own stream in docs/own-stream.md, followed word by word."""

import json
import re
from pathlib import Path

from himalaya_adapter.streams import load_stream
from himalaya_adapter.streams.catalogue import task_card

PAGE = Path(__file__).parent.parent.parent / "docs" / "own-stream.md"


def test_the_documented_stream_loads(tmp_path: Path) -> None:
    (definition,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    (row,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    rows = [
        json.loads(row) | {"id": number, "text": f"ticket {number}", "team": "dev" if number % 3 else "ops"}
        for number in range(90)
    ]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    path = tmp_path / "my_stream.yaml"
    path.write_text(definition, encoding="utf-8")
    (task,) = load_stream(str(path)).tasks
    assert {item.target for item in task.train} == {"operations", "development"}
    assert len(task.train) + len(task.validation) + len(task.test) == 90
    assert task_card(str(path), "tickets").origin == "local files: tickets.jsonl"
