"""The pages in a real browser: figures are drawn, answer to keys, and break no rule of accessibility.

`make test-browser` runs all of this; `make test` what the machine has a browser for.
"""

import html
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from himalaya_adapter.learning.demo import DemoResult
from himalaya_adapter.report import write_comparison, write_run_report
from himalaya_adapter.report.demo_page import write_demo_report
from himalaya_adapter.streams import Item

WANTED = bool(os.environ.get("HIMALAYA_TEST_BROWSER"))  # then nothing is skipped
BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
needs_browser = pytest.mark.skipif(BROWSER is None and not WANTED, reason="no Chromium: apt-get install chromium")
needs_axe = pytest.mark.skipif(not (AXE.is_file() or WANTED), reason="no axe-core: make test-browser fetches it")
TASKS = ["sarcasm", "verse_book_fr", "law_topic_pt"]
RIVALS = {"lora": "LoRA r=8", "o_lora": "O-LoRA", "loreft": "LoReFT", "lilac": "LILAC", "ia3": "A long name"}
VIEWS = {f"{width} {scheme}": (width, scheme == "dark") for width in (1400, 400) for scheme in ("light", "dark")}
# A window is at least 500 pixels wide, a frame in it is not.
FRAME = """<!doctype html><title></title><meta name="color-scheme" content="light dark">
<script>onmessage = event => {{ document.title = event.data; }};</script>
<iframe src="copy.html" style="width: {width}px; height: 900px; border: 0"></iframe>"""
# Steps through the first figure with a key, hides a method, sorts a table, and says what came of it.
USE = """
addEventListener("load", () => setTimeout(async () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  await new Promise(drawn => setTimeout(drawn, 200));
  const found = {}, svg = document.querySelector("figure svg[tabindex]"), tip = document.getElementById("tip");
  svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  found.tip = tip.hidden ? "" : tip.textContent;
  found.drawn = [...document.querySelectorAll("figure")].filter(one => one.querySelector("svg path, canvas")).length;
  const key = document.querySelector(".keys button");
  const shown = () => document.querySelectorAll("figure g[data-name]").length;
  const before = shown();
  key.click();
  found.hidden = before - shown();
  document.querySelector(":is(.tasks, .tasks_now) thead th:nth-child(4) button")?.click();
  const cells = [...document.querySelectorAll(":is(.tasks, .tasks_now) tbody td:nth-child(4)")];
  found.sorted = cells.map(cell => parseFloat(cell.textContent));
  const texts = (figure, what) => [...figure.querySelectorAll(what)].map(one => one.textContent);
  found.doubled = [...document.querySelectorAll("figure")]
    .flatMap(one => texts(one, ".keys button").filter(name => texts(one, "text.title").includes(name)));
  found.width = innerWidth;
  found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.type = Math.min(...[...document.querySelectorAll("svg text, th, td, p, small, button")]
    .filter(one => one.getClientRects().length).map(one => parseFloat(getComputedStyle(one).fontSize)));
  found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (window.axe) found.violations = (await axe.run()).violations.map(one => [one.id, one.nodes[0].html]);
  parent.postMessage(JSON.stringify(found), "*");
}, 200));
"""


def opened(page: Path, width: int, dark: bool, *, axe: bool = False) -> dict[str, Any]:
    """What the browser says of a copy of the page that also runs the script above, and axe."""
    text = page.read_text(encoding="utf-8").replace("Content-Security-Policy", "x-left-out")
    scripts = [AXE.read_text(encoding="utf-8")] if axe else []
    copy = page.with_name("copy.html")
    copy.write_text(text + "".join(f"<script>{script}</script>" for script in (*scripts, USE)), encoding="utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width + 40},1000"]
    words += [f"--user-data-dir={page.parent / 'browser'}", f"--blink-settings=preferredColorScheme={int(not dark)}"]
    words += ["--virtual-time-budget=8000", "--dump-dom", frame.as_uri()]
    dom = subprocess.run(words, capture_output=True, text=True, timeout=240, check=True).stdout
    return dict(json.loads(html.unescape(dom.split("<title>")[1].split("</title>")[0])))


@pytest.fixture
def written(make_run: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """``written(kind)`` writes a page of that kind."""

    def write(kind: str) -> Path:
        if kind == "demo":
            return write_demo_report(_demo(), tmp_path)
        make_run("himalaya", tasks=TASKS)
        rivals = {"two methods": 1, "many methods": len(RIVALS), "run": 0}[kind]
        for method, name in list(RIVALS.items())[:rivals]:
            make_run(method, tasks=TASKS, method=method, method_name=name, forgetting_rate=0.1)
        if kind == "run":
            return write_run_report(tmp_path / "himalaya")
        return write_comparison(tmp_path, ["himalaya", *list(RIVALS)[:rivals]], tmp_path / "out")

    return write


def _demo() -> DemoResult:
    result = DemoResult("smollm2-135m", dict.fromkeys(TASKS, "accuracy"), dict.fromkeys(TASKS, 0.2))
    for rows in result.after.values():
        rows += [dict.fromkeys(TASKS[: after + 1], 0.9 - 0.2 * after) for after in range(len(TASKS))]
    result.questions = [Item(prompt="Is this sarcasm?\nHow nice.", target="yes", source="1")]
    result.answers = {method: ["yes"] for method in result.after}
    return result


@needs_browser
@pytest.mark.parametrize("view", VIEWS)
def test_a_page_works_in_a_browser(view: str, written: Callable[[str], Path]) -> None:
    width, dark = VIEWS[view]
    found = opened(written("run" if dark else "two methods"), width, dark)
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["tip"].startswith("HIMALAYA\n1. sarcasm\n0.")
    assert found["drawn"] >= 9
    assert found["hidden"] > 0
    assert found["sorted"] == sorted(found["sorted"], reverse=True)
    assert found["overflow"] == 0
    assert found["type"] >= 10


@needs_browser
@needs_axe
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", ["two methods", "many methods", "run", "demo"])
def test_a_page_breaks_no_rule_of_accessibility(kind: str, view: str, written: Callable[[str], Path]) -> None:
    found = opened(written(kind), *VIEWS[view], axe=True)
    assert found["violations"] == []
    assert found["doubled"] == [], "a method that has a chart of its own needs no key"
    assert found["overflow"] == 0
