"""Which of a task's prompts the memory of prompts sees, where there are more than it wants."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_backbone

from himalaya_adapter.learning.learn import LearnOptions, learn
from himalaya_adapter.methods.task_inference.gaussians import ENOUGH, GaussianMemory


def test_a_memory_sees_prompts_of_all_lengths(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = write_backbone(tmp_path / "base", tiny_model, tiny_tokenizer)
    rows = [{"prompt": f"Say {n}" + " again" * (n % 2 * 10), "completion": f"{n}"} for n in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lengths: list[int] = []

    def seen(self: GaussianMemory, states: Any, mask: Any) -> None:
        lengths.extend(mask.sum(1).tolist())
        observe(self, states, mask)

    observe = GaussianMemory.observe_prompts
    monkeypatch.setattr(GaussianMemory, "observe_prompts", seen)
    learn(tmp_path / "mine", str(tmp_path / "rows.jsonl"), "say", LearnOptions(str(backbone), 0.2, steps=1))
    assert len(lengths) == ENOUGH
    middle = (min(lengths) + max(lengths)) / 2
    assert 0.35 < sum(length > middle for length in lengths) / ENOUGH < 0.65
