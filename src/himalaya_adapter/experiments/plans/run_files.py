"""Run configs as files: one text for one meaning, judged by the schema, written whole or not at all."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from himalaya_adapter.documents import parse_document, read_document, without_interpolations
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import parse
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.storage import write_atomic

DOCUMENT = "run_configs"  # the name of the source's document, of its one key, and of its file
FIELDS = ("run_id", "run_config_yaml")


@dataclass(frozen=True)
class RunText:
    """A run config as it is written.

    Args:
        run_id: The run.
        text: YAML.
        origins: Every key with its value and where that comes from.
    """

    run_id: str
    text: str
    origins: Sequence[tuple[str, Any, str]] = ()


def check_file(path: Path) -> None:
    """Check a run config, or every one of a document ``{"run_configs": [{"run_id", "run_config_yaml"}]}``.

    Raises:
        HimalayaError: What is wrong: the key, what was found, what is allowed.
    """
    content = read_document(path)
    if isinstance(content, Mapping) and DOCUMENT in content:
        for entry in document_entries(content):
            run_of_text(entry)
    else:
        run_of(content, "the run config")


def document_entries(content: Any) -> list[RunText]:
    """The run configs of a document, not yet judged.

    Raises:
        HimalayaError: It has not the form of the document, or two runs of one name.
    """
    form = f'expected {{"{DOCUMENT}": [{{"run_id": …, "run_config_yaml": …}}]}}'
    entries = content.get(DOCUMENT) if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise HimalayaError(f"no list '{DOCUMENT}' of run configs; {form}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(name), str) for name in FIELDS):
            raise HimalayaError(f"{DOCUMENT}[{number}] has not the texts 'run_id' and 'run_config_yaml'; {form}")
    for name, count in Counter(entry["run_id"].casefold() for entry in entries).items():
        if count > 1:
            raise HimalayaError(f"{DOCUMENT} has {count} runs of the run_id '{name}'; a run_id names one run")
    return [RunText(entry["run_id"], entry["run_config_yaml"]) for entry in entries]


def run_of_text(config: RunText) -> RunConfig:
    """The run of a config, checked just as one of a file.

    Raises:
        HimalayaError: What is wrong with it.
    """
    here = f"run '{config.run_id}'"
    run = run_of(parse_document(config.text, here), here)
    if run.run_id != config.run_id:
        raise HimalayaError(f"run_id={run.run_id}: expected {config.run_id}, under which it is listed")
    return run


def run_of(content: Any, here: str) -> RunConfig:
    """The run of a config's content, checked.

    Raises:
        HimalayaError: What is wrong with it.
    """
    run = parse(RunConfig, without_interpolations(content, here), here)
    check_run(run)
    return run


def canonical(run_id: str, content: Mapping[str, Any], origins: Sequence[tuple[str, Any, str]] = ()) -> RunText:
    """A config in its written form: its keys with their typed values in the order of the schema.

    A number is a number to every YAML reader (``1.0e-05``, as ``1e-5`` is text to YAML 1.1).

    Raises:
        HimalayaError: The config is not valid.
    """
    given = _given(asdict(run_of(content, f"run '{run_id}'")), content)
    sections = [yaml.dump({key: value}, Dumper=_Dumper, **FORM) for key, value in given.items()]
    # A blank line before every section but the model's, as the source has it.
    text = "".join(f"\n{part}" if re.match(r"(?!model)\w+:\n", part) else part for part in sections)
    return RunText(run_id, text, origins)


def write_configs(configs: Sequence[RunText], folder: Path, *, overwrite: bool) -> list[Path]:
    """Write ``<run_id>.yaml`` for every run, and all of them in ``run_configs.json``.

    Args:
        configs: Valid run configs.
        folder: Where to; it is made if need be.
        overwrite: Whether a file with other content is replaced.

    Returns:
        All paths; a file that has its content already is left as it is.

    Raises:
        HimalayaError: A file has other content. Then nothing is written.
    """
    document = {DOCUMENT: [dict(zip(FIELDS, (config.run_id, config.text), strict=True)) for config in configs]}
    contents = {folder / f"{config.run_id}.yaml": config.text for config in configs}
    contents[folder / f"{DOCUMENT}.json"] = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    changed = [path for path in contents if not _holds(path, contents[path])]
    kept = [path for path in changed if path.exists() or path.is_symlink()]
    if kept and not overwrite:
        raise HimalayaError(f"{kept[0]} exists with other content; --overwrite replaces it, --output writes elsewhere")
    for path in changed:
        write_atomic(path, contents[path])
    return list(contents)


class _Dumper(yaml.SafeDumper):
    """Lists on one line, mappings on lines of their own; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
FORM: Mapping[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 10_000}


def _given(typed: Any, given: Any) -> Any:
    """The typed values of the keys that are given."""
    if not isinstance(typed, Mapping) or not isinstance(given, Mapping):
        return typed
    return {key: _given(value, given[key]) for key, value in typed.items() if key in given}


def _holds(path: Path, content: str) -> bool:
    return path.is_file() and path.read_bytes() == content.encode()
