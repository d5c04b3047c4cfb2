"""Reads the YAML entry of a task into a ``TaskSpec``, with one clear line for whatever is wrong in it."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.schema import parse
from himalaya_adapter.streams.items import normal_label
from himalaya_adapter.streams.readers import READER_OPTIONS, READERS
from himalaya_adapter.streams.task import Source, TaskSpec

FILE_NAME = re.compile(r"\w[\w.-]*")


def read_task(entry: Any, stream: str) -> TaskSpec:
    """Validate one entry of the ``tasks`` list of a stream.

    Args:
        entry: The parsed YAML.
        stream: Name or path of the stream, for error messages.

    Raises:
        HimalayaError: A key is missing, unknown, or has a value of the wrong type.
    """
    named = isinstance(entry, Mapping) and "name" in entry
    here = f"task '{entry['name']}' of {stream}" if named else f"a task of {stream}"
    written = entry if isinstance(entry, Mapping) else {}
    labels, label_of = _labels(written.get("labels"), here)
    if written.keys() >= {"label_of"}:
        raise HimalayaError(f"{here} has 'label_of'; labels with the source's values stand under 'labels'")
    spec = parse(TaskSpec, {**written, "labels": labels} if written else entry, here)
    if (spec.kind == "classification") != bool(labels):
        raise HimalayaError(
            f"{here} is of kind '{spec.kind}'; labels belong to kind 'classification', which needs them"
        )
    if spec.label_noise and not labels:
        raise HimalayaError(f"{here} has 'label_noise' but no labels")
    name = unicodedata.normalize("NFC", spec.name)
    # Exports name a folder after the task. Many scripts write vowels as marks on letters.
    if not FILE_NAME.fullmatch("".join(one for one in name if not unicodedata.category(one).startswith("M"))):
        raise HimalayaError(f"{here}: the name must do for a folder: letters, digits and '_', inside it '-' and '.'")
    _check_source(spec.source, here)
    template, description = spec.template.rstrip(), spec.description.strip()
    return replace(spec, name=name, template=template, description=description, label_of=label_of)


def _check_source(source: Source, here: str) -> None:
    if bool(source.files) == (source.hub is not None):
        raise HimalayaError(f"'source' of {here} needs 'files' or 'hub', what to read")
    if source.reader not in READERS:
        raise unknown_name(f"reader in {here}", source.reader, READERS)
    known = READER_OPTIONS.get(source.reader, ())
    for name in source.options:
        if name not in known:
            raise unknown_name(f"key in 'options' of {here}", name, known)


def _labels(value: Any, here: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Labels as a list, or as a mapping from the source's values; returns the label set and the mapping.

    Values and labels are known by their normal form: two that differ in outer white space or Unicode form are one.
    """
    if value is None:
        return (), {}
    if not isinstance(value, list | Mapping):
        raise HimalayaError(f"'labels' of {here} is {value!r}; expected a list, or source values with their labels")
    pairs = list(value.items()) if isinstance(value, Mapping) else [(label, label) for label in value]
    label_of: dict[str, str] = {}
    for raw, label in pairs:
        if not isinstance(raw, str) or not isinstance(label, str):
            raise HimalayaError(f"label {label!r} of {here} is not text; quote it in YAML")
        if not label.strip():
            raise HimalayaError(f"the label of value '{raw}' of {here} has an empty text")
        if normal_label(raw) in label_of:
            raise HimalayaError(f"the label of value '{raw}' of {here} is given twice")
        label_of[normal_label(raw)] = normal_label(label)
    labels = tuple(dict.fromkeys(label_of.values()))
    if len(labels) < 2:
        raise HimalayaError(f"{here} has fewer than two labels: {list(labels)}")
    return labels, label_of
