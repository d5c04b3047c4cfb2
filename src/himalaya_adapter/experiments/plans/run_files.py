"""Run configs as files: judged by the schema, written whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from himalaya_adapter.documents import document_text, parse_document, read_document, without_interpolations
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import Section, parse
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.storage import write_atomic

DOCUMENT = "run_configs"  # the name of the source's document, of its one key, and of its file


@dataclass
class Entry(Section):
    """A run config in a document."""

    run_id: str
    run_config_yaml: str

    def read(self) -> tuple[dict[str, Any], RunConfig]:
        """What the config says, and its run, checked just as one of a file.

        Raises:
            HimalayaError: What is wrong with it.
        """
        content = parse_document(self.run_config_yaml, f"run '{self.run_id}'")
        run = run_of(content, f"run '{self.run_id}'")
        if run.run_id != self.run_id:
            raise HimalayaError(f"run_id={run.run_id}: expected {self.run_id}, under which it is listed")
        return content, run


@dataclass
class Document(Section):
    """Several run configs in one file."""

    run_configs: Annotated[list[Entry], Field(min_length=1)]


def read_runs(path: Path) -> list[RunConfig]:
    """The run of a config, or those of a document ``{"run_configs": [{"run_id", "run_config_yaml"}]}``, checked.

    Raises:
        HimalayaError: What is wrong: the key, what was found, what is allowed.
    """
    content = read_document(path)
    if isinstance(content, Mapping) and DOCUMENT in content:
        return [entry.read()[1] for entry in parse(Document, content, "the document").run_configs]
    return [run_of(content, "the run config")]


def run_of(content: Any, here: str) -> RunConfig:
    """The run of a config's content, checked.

    Raises:
        HimalayaError: What is wrong with it.
    """
    run = parse(RunConfig, without_interpolations(content, here), here)
    check_run(run)
    return run


def write_configs(contents: Sequence[Mapping[str, Any]], folder: Path, *, overwrite: bool) -> list[Path]:
    """Write ``<run_id>.yaml`` for every run, and all of them in ``run_configs.json``.

    Args:
        contents: Of valid run configs.
        folder: Where to; it is made if need be.
        overwrite: Whether a file with other content is replaced.

    Returns:
        All paths.

    Raises:
        HimalayaError: A file has other content. Then nothing is written.
    """
    # PyYAML writes 1e-5 as 1.0e-05, which is a number to every reader of YAML.
    texts = [document_text(content) for content in contents]
    entries = [Entry(str(content["run_id"]), text) for content, text in zip(contents, texts, strict=True)]
    files = {folder / f"{entry.run_id}.yaml": entry.run_config_yaml for entry in entries}
    document = json.dumps(asdict(Document(entries)), indent=2, ensure_ascii=False)
    files[folder / f"{DOCUMENT}.json"] = f"{document}\n"
    for path, text in files.items():
        if not overwrite and path.exists() and path.read_bytes() != text.encode():
            raise HimalayaError(
                f"{path} exists with other content; --overwrite replaces it, --output writes elsewhere"
            )
    for path, text in files.items():
        write_atomic(path, text)
    return list(files)
