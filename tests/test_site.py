"""The documentation builds as a site without a warning, and reads without a network. `make test-docs` runs this."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"(https?:)?//")


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "true"}
    built = subprocess.run(words, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {path.parent.name: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("index.html")}
    assert "himalaya learn" in pages["command-line"]
    assert "training.learning_rate" in pages["config-keys"]
    assert "Paired tests, task by task" in pages["result-tables"]
    assert "set_task" in pages["api"]
    assert not [name for name, page in pages.items() if LOADED.search(page)]
