"""Two processes cannot work on one run; a killed one leaves nothing that keeps the next one out."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import in_own_process, write_backbone, write_run, write_stream

from himalaya_adapter.cli import main
from himalaya_adapter.training.run_store import RunStore


def hold(folder: Path, taken: Event) -> None:
    with RunStore(folder, {}).locked():
        taken.set()
        multiprocessing.Event().wait()


def test_the_second_process_is_sent_away(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer)
    run = write_run(tmp_path, backbone, write_stream(tmp_path), "LORA", max_updates_per_task=1)
    results_dir = tmp_path / "out"
    words = ["run", f"run={run}", f"results_dir={results_dir}"]
    assert in_own_process(words, write="evaluations") == -9, "killed while it held the lock"

    context = multiprocessing.get_context("forkserver")
    taken = context.Event()
    process = context.Process(target=hold, args=(results_dir / "other", taken))
    process.start()
    taken.wait()
    assert main([*words, "run_id=other"]) == 2
    assert f"another process is working on {results_dir / 'other'}" in capsys.readouterr().err
    assert not (results_dir / "other").exists()
    assert main(words) == 0, "another run of the same folder is free, and so is one whose process was killed"
    process.kill()
    process.join()
    assert main([*words, "run_id=other"]) == 0
    assert sorted(path.name for path in results_dir.iterdir()) == [".scores", "lora", "other"]
