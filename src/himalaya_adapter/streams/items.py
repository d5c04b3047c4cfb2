"""From rows to items: reads a task's files and fills its templates."""

import datetime
import hashlib
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path

from himalaya_adapter import packages
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.streams.hub import hub_rows
from himalaya_adapter.streams.readers import BadRow, Row, read_file
from himalaya_adapter.streams.splits import form_of, is_in_part
from himalaya_adapter.streams.task import HubSource, Item, TaskSpec, normal_label

EXCLUDED = "!"
LONGEST_SOURCE = 1000  # characters; a longer text that names a source item is replaced by its hash
NOT_UTF8 = re.compile("[\ufffd\ud800-\udfff]")  # what a byte that is not UTF-8 is read as; half a character
PLAIN = str | bool | int | float | Decimal | datetime.date | datetime.time  # what has one evident form as text
# What bad rows are counted under.
NO_FIELD, NO_VALUE, EMPTY, UNKNOWN_LABEL, BROKEN = "no field", "no value", "empty", "unknown label", "not UTF-8"
NOT_TEXT = "not text"


def read_items(spec: TaskSpec, archive: Path | None, folder: Path, skipped: Counter[str]) -> Iterator[Item]:
    """Yield the items of a task in reading order, before duplicates are dropped and splits are cut.

    Args:
        spec: The task, whose data is in files.
        archive: Where its archive lies, if it has one.
        folder: Where relative local files are looked for.
        skipped: Counts by reason the rows that gave no item, if the task's policy is to skip them.

    Raises:
        HimalayaError: No such file or field; a bad row if the task's policy is to stop.
    """
    files = _local_files(spec, folder) if archive is None else _archived_files(spec, archive)
    for name, content in files:
        rows = read_file(content, name, spec.source.reader, spec.source.options)
        yield from _items(spec, name, rows, skipped)


def read_split(spec: TaskSpec, hub: HubSource, split: str, skipped: Counter[str]) -> Iterator[Item]:
    """As ``read_items``, of one split of the task's data set on the hub, which has been fetched."""
    return _items(spec, f"split '{split}' of {hub.id}", hub_rows(hub, split), skipped)


def _items(spec: TaskSpec, name: str, rows: Iterable[Row | BadRow], skipped: Counter[str]) -> Iterator[Item]:
    fields = fields_of(spec)
    for number, row in enumerate(rows, start=1):
        try:
            item = item_of(spec, fields, row, f"row {number} of {name} in task '{spec.name}'")
        except BadRow as error:
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
        BadRow: A field, value, target or label is missing or wrong.
    """
    text = _texts(fields, row, where)
    if not all(_is_kept(text[field], values) for field, values in spec.source.where.items()):
        return None
    item = _item(spec, {field: value.strip() for field, value in text.items()}, where)
    lengths = ((item.prompt, spec.max_prompt_characters), (item.target, spec.max_target_characters))
    is_chosen = (
        all(longest is None or len(text) <= longest for text, longest in lengths)
        and is_in_part(item.source, spec.source.part)
        and not any(word.casefold() in item.prompt.casefold() for word in spec.forbidden_words)
    )
    return item if is_chosen else None


def _local_files(spec: TaskSpec, folder: Path) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the task's files, in the order of their names."""
    for pattern in spec.source.files:
        # A name may hold what would be a wildcard.
        names = [pattern] if (folder / pattern).is_file() else sorted(glob(pattern, root_dir=folder, recursive=True))
        found = [name for name in names if (folder / name).is_file()]
        if not found:
            raise HimalayaError(f"task '{spec.name}': no file matches '{pattern}' in {folder.resolve()}")
        yield from ((name, (folder / name).read_bytes()) for name in found)


def _archived_files(spec: TaskSpec, archive: Path) -> Iterator[tuple[str, bytes]]:
    """As `_local_files`; a pattern with an exclamation mark in front leaves out what it names."""
    names = packages.member_names(archive)
    chosen, left_out = set[str](), set[str]()
    for pattern in spec.source.files:
        plain = pattern.removeprefix(EXCLUDED)
        found = {name for name in names if name == plain or fnmatchcase(name, plain)}
        if not found:
            raise HimalayaError(f"task '{spec.name}': no file in {archive.name} matches '{pattern}'")
        (chosen if plain == pattern else left_out).update(found)
    wanted = sorted(chosen - left_out)
    yield from zip(wanted, packages.read_members(archive, wanted), strict=True)


def _fields(template: str, spec: TaskSpec) -> set[str]:
    """The field names between braces; ``{{`` stands for a brace."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise HimalayaError(f"template {template!r} of task '{spec.name}': {error}") from error
    for _, field, form, conversion in parts:
        if field is not None and (form or conversion or not field.isidentifier()):
            raise HimalayaError(
                f"template {template!r} of task '{spec.name}': '{{{field}}}' is not a plain field name "
                "(letters, digits and '_' alone): rename the column"
            )
    return {field for _, field, _, _ in parts if field is not None}


def _texts(fields: Sequence[str], row: Row | BadRow, where: str) -> dict[str, str]:
    """The values of a row's fields as text."""
    if isinstance(row, BadRow):
        raise BadRow(row.reason, f"{where} {row}")
    texts = {}
    for field in fields:
        if field not in row:
            raise BadRow(NO_FIELD, str(unknown_name(f"field in {where}", field, row)))
        value = row[field]
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise BadRow(NO_VALUE, f"{where} has no value in field '{field}'")
        if not isinstance(value, PLAIN):
            kind = type(value).__name__
            raise BadRow(NOT_TEXT, f"{where} has a {kind} in field '{field}'; expected text or a number")
        texts[field] = str(value)
    return texts


def _is_kept(value: str, patterns: tuple[str, ...]) -> bool:
    """Whether the value is one of the patterns, as labels are; in them only ``*`` and ``?`` are wildcards."""
    return any(fnmatchcase(normal_label(value), normal_label(one).replace("[", "[[]")) for one in patterns)


def _item(spec: TaskSpec, text: Mapping[str, str], where: str) -> Item:
    target = spec.target.format_map(text).strip()
    if not target:
        raise BadRow(EMPTY, f"{where} has an empty {'label' if spec.label_of else 'target'}")
    if spec.label_of:
        known = normal_label(target)
        if known not in spec.label_of:
            raise BadRow(UNKNOWN_LABEL, f"{where} has label '{target}'; known labels: {', '.join(spec.label_of)}")
        target = spec.label_of[known]
    prompt = spec.template.format_map(text).rstrip()
    if not prompt.strip():
        raise BadRow(EMPTY, f"{where} has an empty prompt")
    source = form_of(spec.source)(" | ".join(text[field] for field in spec.source.group))
    if NOT_UTF8.search(prompt + target + source):
        raise BadRow(BROKEN, f"{where} has characters that are not UTF-8; save the file as UTF-8")
    if len(source) > LONGEST_SOURCE:
        source = hashlib.sha256(source.encode("utf-8")).hexdigest()
    return Item(prompt=prompt, target=target, source=source)
