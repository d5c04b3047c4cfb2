"""The page in a real browser: figures are drawn, answer to a pointer and to keys, and nothing breaks accessibility."""

import html
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from himalaya_adapter.report import write_comparison, write_run_report

BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
TASKS = ["sarcasm", "verse_book_fr", "law_topic_pt"]
VIEWS = {f"{width} {scheme}": (width, scheme == "dark") for width in (1400, 400) for scheme in ("light", "dark")}
# A window is at least 500 pixels wide, a frame in it is not.
FRAME = """<!doctype html><title></title><meta name="color-scheme" content="light dark">
<script>onmessage = event => {{ document.title = event.data; }};</script>
<iframe src="copy.html" style="width: {width}px; height: 900px; border: 0"></iframe>"""
# Steps through the first figure with a key, hides a method, sorts a table, and says what came of it.
USE = """
addEventListener("load", () => setTimeout(async () => {
  const found = {}, svg = document.querySelector("figure svg[tabindex]"), tip = document.getElementById("tip");
  svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  found.tip = tip.hidden ? "" : tip.textContent;
  found.drawn = [...document.querySelectorAll("figure")].filter(one => one.querySelector("svg path, canvas")).length;
  const key = document.querySelector(".keys button");
  const shown = () => document.querySelectorAll("figure g[data-name]").length;
  const before = shown();
  key.click();
  found.hidden = before - shown();
  document.querySelector("table.tasks thead th:nth-child(4) button").click();
  const cells = [...document.querySelectorAll("table.tasks tbody td:nth-child(4)")];
  found.sorted = cells.map(cell => parseFloat(cell.textContent));
  found.width = innerWidth;
  found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.type = Math.min(...[...document.querySelectorAll("svg text, th, td, p, small, button")]
    .filter(one => one.getClientRects().length).map(one => parseFloat(getComputedStyle(one).fontSize)));
  found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (window.axe) found.violations = (await axe.run()).violations.map(one => [one.id, one.nodes[0].html]);
  parent.postMessage(JSON.stringify(found), "*");
}, 200));
"""


def opened(page: Path, width: int, dark: bool) -> dict[str, Any]:
    """What the browser says of a copy of the page that also runs the script above, and axe if it is there."""
    text = page.read_text(encoding="utf-8").replace("Content-Security-Policy", "x-left-out")
    scripts = [AXE.read_text(encoding="utf-8")] if AXE.is_file() else []
    copy = page.with_name("copy.html")
    copy.write_text(text + "".join(f"<script>{script}</script>" for script in (*scripts, USE)), encoding="utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width + 40},1000"]
    words += [f"--user-data-dir={page.parent / 'browser'}", f"--blink-settings=preferredColorScheme={int(not dark)}"]
    words += ["--virtual-time-budget=8000", "--dump-dom", frame.as_uri()]
    dom = subprocess.run(words, capture_output=True, text=True, timeout=240, check=True).stdout
    return dict(json.loads(html.unescape(dom.split("<title>")[1].split("</title>")[0])))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("view", VIEWS)
def test_the_page_works_in_a_browser(view: str, make_run: Callable[..., Path], tmp_path: Path) -> None:
    width, dark = VIEWS[view]
    make_run("himalaya", tasks=TASKS)
    make_run("lora", tasks=TASKS, method="lora", method_name="LoRA r=8", forgetting_rate=0.1)
    page = write_comparison(tmp_path, ["himalaya", "lora"], tmp_path / "out")
    if dark:
        page = write_run_report(tmp_path / "himalaya")
    found = opened(page, width, dark)
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["tip"].startswith("HIMALAYA\n1. sarcasm\n0.")
    assert found["drawn"] >= 9
    assert found["hidden"] > 0
    assert found["sorted"] == sorted(found["sorted"], reverse=True)
    assert found["overflow"] == 0
    assert found["type"] >= 10
    assert found.get("violations", []) == []
