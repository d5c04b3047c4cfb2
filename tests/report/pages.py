"""What the tests of reports share: a page taken apart and checked."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from himalaya_adapter.report.run_folder import RunRecord, read_comparable_runs
from himalaya_adapter.storage import read_json

VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}
FETCHES = {"src", "href", "srcset", "action", "data", "poster"}


CHANGED = "changed.json"  # metrics that a run is to have, whatever follows from its matrix


def changed_runs(place: Path, run_ids: Sequence[str]) -> list[RunRecord]:
    """Finished runs with the metrics of their ``changed.json``, where they have one."""
    runs = read_comparable_runs(place, run_ids)
    paths = [run.folder / CHANGED for run in runs]
    return [
        replace(run, metrics=read_json(path)) if path.is_file() else run for run, path in zip(runs, paths, strict=True)
    ]


def metrics_of(folder: Path) -> dict[str, Any]:
    """What `changed_runs` finds."""
    path = folder / CHANGED
    return dict(read_json(path if path.is_file() else folder / "metrics.json"))


class Page(HTMLParser):
    """A page whose tags are all closed in order, with its text, scripts, ids and number of elements."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.html = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.elements = 0
        self.policy = ""
        self.feed(self.html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"
        assert len(set(self.ids)) == len(self.ids)
        assert set(self.links) <= set(self.ids)
        # Nothing but the page's own script runs, and nothing is fetched.
        data, code = self.scripts
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in self.policy
        assert self.policy.startswith("default-src 'none'")
        self.figures: dict[str, list[dict[str, Any]]] = json.loads(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: str(value) for name, value in attrs}
        self.elements += 1
        assert not [name for name in given if name.startswith("on")], "no script in an attribute"
        assert all(value.startswith("#") for name, value in given.items() if name in FETCHES), "the page stands alone"
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"].removeprefix("#"))
        if tag == "script":
            self.scripts.append("")
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            assert not re.search(r"url\(|@import", data), "the page stands alone"
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        else:
            self.text += data

    def numbers(self) -> set[float]:
        """All numbers that a figure shows where it is pointed at."""
        found: set[float] = set()
        for charts in self.figures.values():
            for chart in charts:
                rows = chart.get("values", []) + [p for series in chart.get("series", []) for p in series["points"]]
                found |= {value for row in rows for value in row if value is not None}
        return found
