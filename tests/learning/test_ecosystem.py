"""lm-evaluation-harness scores a task of an adapter: through its API, and on its command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_backbone

from himalaya_adapter.cli import main
from himalaya_adapter.deploy.adapter_folder import load_adapter

TASK = """
task: echo
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_target: "{{completion}}"
doc_to_choice: ["1 1", "2 2"]
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model: Callable[..., Any], tiny_tokenizer) -> Path:
    place = tmp_path_factory.mktemp("harness")
    write_backbone(place / "base", tiny_model, tiny_tokenizer)
    rows = [
        {"prompt": f"{'again ' * n}Repeat {1 + n % 2}:", "completion": f"{1 + n % 2} {1 + n % 2}"} for n in range(24)
    ]
    (place / "echo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "tasks").mkdir()
    (place / "tasks" / "echo.yaml").write_text(TASK % (place / "echo.jsonl"))
    words = ["learn", str(place / "mine"), str(place / "echo.jsonl"), "--task", "echo"]
    assert main([*words, "--backbone", str(place / "base"), "--steps", "4"]) == 0
    return place


@pytest.mark.slow  # its imports alone take half a minute
def test_the_api_and_the_command_line_agree(place: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    mine = load_adapter(place / "mine", task="echo")
    model = HFLM(pretrained=mine.model, tokenizer=mine.tokenizer)
    manager = TaskManager(include_path=str(place / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=["echo"], task_manager=manager)["results"]["echo"]["acc,none"]
    assert 0 <= found <= 1
    program = "import himalaya_adapter, lm_eval.__main__ as m; m.cli_evaluate()"
    words = [
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={place / 'base'},peft={place / 'mine'},dtype=float32",
    ]
    words += ["--tasks", "echo", "--include_path", str(place / "tasks"), "--output_path", str(place / "out.json")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = place.glob("out*.json")
    assert json.loads(written.read_text())["results"]["echo"]["acc,none"] == found
