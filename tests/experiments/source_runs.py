"""The source's run configs, leaf by leaf."""

import copy
from pathlib import Path
from typing import Any

import yaml

from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.experiments.composition import CONF


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested sections by their dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf
        for key, entry in value.items()
        for path, leaf in leaves(entry, f"{prefix}.{key}" if prefix else key).items()
    }


def read(name: str) -> Any:
    """A packaged run config as it is written."""
    return yaml.safe_load((CONF / "run" / f"{name}.yaml").read_text(encoding="utf-8"))


def changed_run(name: str, path: str, value: Any, folder: Path) -> RunConfig:
    """The composed run of a packaged file with one leaf changed."""
    content = copy.deepcopy(read(name))
    section = content
    *parents, last = path.split(".")
    for parent in parents:
        section = section[parent]
    assert last in section
    assert section[last] != value
    section[last] = value
    file = folder / "changed.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return compose_run([f"run={file}"]).run
