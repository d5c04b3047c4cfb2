"""A small plan."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SMALL_PLAN: dict[str, Any] = {
    "experimental_design": {
        "experiment_summary": "Learn 6 tasks.",
        "evaluation_metrics": ["BLEU", "Average forgetting"],
        "proposed_method": "HIMALAYA: an adapter.",
        "comparative_methods": ["LoRA (low rank)"],
        "models_to_use": ["smollm2-135m"],
        "datasets_to_use": ["demo_stream_6"],
        "hyperparameters_to_search": {"learning_rate": "1e-3-1e-1"},
    },
}


@pytest.fixture
def plan_file(tmp_path: Path) -> Callable[..., str]:
    """Writes the small plan with changes: dotted paths with values; ``None`` as a value deletes."""

    def write(changes: dict[str, Any] | None = None) -> str:
        plan = copy.deepcopy(SMALL_PLAN)
        for path, value in (changes or {}).items():
            section = plan
            *parents, last = path.split("/")
            for parent in parents:
                section = section.setdefault(parent, {})
            if value is None:
                del section[last]
            else:
                section[last] = value
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump(plan, allow_unicode=True), encoding="utf-8")
        return str(file)

    return write
