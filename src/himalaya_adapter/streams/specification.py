"""Reads the YAML entry of a task into a ``TaskSpec``, with one clear line for whatever is wrong in it."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.streams.items import normal_label
from himalaya_adapter.streams.readers import READER_OPTIONS, READERS
from himalaya_adapter.streams.task import KINDS, POLICIES, SPLITS, HubSource, Limits, Source, TaskSpec

TASK_KEYS = (
    *("name", "language", "kind", "source", "template", "target", "metric", "labels", "max_new_tokens", "caps"),
    *("max_prompt_characters", "max_target_characters", "description", "forbidden_words", "label_noise"),
    "on_bad_item",
)
OPTIONAL_TASK_KEYS = {"labels", "caps", *TASK_KEYS[-6:]}
SOURCE_KEYS = ("archive", "files", "hub", "reader", "options", "where", "group", "part")
HUB_KEYS = ("id", "config", "revision", "train", "held_out", "fields", "rows", "licence")
OPTIONAL_HUB_KEYS = {"config", "held_out", "rows"}
FILE_NAME = re.compile(r"\w[\w.-]*")
PART = re.compile(r"([1-9]\d*)/([1-9]\d*)")


def read_task(entry: Any, stream: str) -> TaskSpec:
    """Validate one entry of the ``tasks`` list of a stream.

    Args:
        entry: The parsed YAML.
        stream: Name or path of the stream, for error messages.

    Raises:
        HimalayaError: A key is missing, unknown, or has a value of the wrong type.
    """
    here = (
        f"task '{entry['name']}' of {stream}"
        if isinstance(entry, Mapping) and "name" in entry
        else f"a task of {stream}"
    )
    entry = _mapping(entry, here, TASK_KEYS)
    for key in TASK_KEYS:
        if key not in entry and key not in OPTIONAL_TASK_KEYS:
            raise HimalayaError(f"{here} has no '{key}'")
    kind = _text(entry, "kind", here)
    if kind not in KINDS:
        raise unknown_name(f"kind in {here}", kind, KINDS)
    labels, label_of = _labels(entry.get("labels"), here)
    if (kind == "classification") != bool(labels):
        raise HimalayaError(f"{here} is of kind '{kind}'; labels belong to kind 'classification', which needs them")
    name = unicodedata.normalize("NFC", _text(entry, "name", here))
    # Exports name a folder after the task. Many scripts write vowels as marks on letters.
    if not FILE_NAME.fullmatch("".join(one for one in name if not unicodedata.category(one).startswith("M"))):
        raise HimalayaError(f"{here}: the name must do for a folder: letters, digits and '_', inside it '-' and '.'")
    return TaskSpec(
        name=name,
        language=_text(entry, "language", here),
        kind=kind,
        source=_source(entry["source"], here),
        template=_text(entry, "template", here).rstrip(),
        target=_text(entry, "target", here),
        metric=_text(entry, "metric", here),
        labels=labels,
        label_of=label_of,
        max_new_tokens=_count(entry, "max_new_tokens", here),
        caps=_caps(entry.get("caps", {}), here),
        max_prompt_characters=_optional_count(entry, "max_prompt_characters", here),
        max_target_characters=_optional_count(entry, "max_target_characters", here),
        description=str(entry.get("description", "")).strip(),
        forbidden_words=_names(entry.get("forbidden_words", [])),
        label_noise=_label_noise(entry.get("label_noise", 0), labels, here),
        on_bad_item=_policy(entry.get("on_bad_item", "stop"), here),
    )


def _mapping(value: Any, here: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise HimalayaError(f"{here} is {value!r}; expected keys with values ({', '.join(known)})")
    for key in value:
        if key not in known:
            raise unknown_name(f"key in {here}", str(key), known)
    return value


def _text(entry: Mapping[str, Any], key: str, here: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or not value.strip():
        # YAML reads an unquoted `no` (Norwegian) as false, hence the advice.
        raise HimalayaError(f"'{key}' of {here} is {value!r}; expected non-empty text (quote it in YAML)")
    return value


def _count(entry: Mapping[str, Any], key: str, here: str) -> int:
    value = entry[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise HimalayaError(f"'{key}' of {here} is {value!r}; expected a whole number of at least 1")
    return value


def _optional_count(entry: Mapping[str, Any], key: str, here: str) -> int | None:
    return _count(entry, key, here) if key in entry else None


def _caps(value: Any, here: str) -> Limits:
    caps = _mapping(value, f"'caps' of {here}", SPLITS)
    return Limits(**{split: _count(caps, split, f"'caps' of {here}") for split in caps})


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


def _label_noise(value: Any, labels: tuple[str, ...], here: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise HimalayaError(f"'label_noise' of {here} is {value!r}; expected a share of at least 0 and below 1")
    if value and not labels:
        raise HimalayaError(f"{here} has 'label_noise' but no labels")
    return float(value)


def _policy(value: Any, here: str) -> str:
    if value not in POLICIES:
        raise unknown_name(f"'on_bad_item' of {here}", str(value), POLICIES)
    return str(value)


def _source(value: Any, task: str) -> Source:
    here = f"'source' of {task}"
    source = _mapping(value, here, SOURCE_KEYS)
    if ("files" in source) == ("hub" in source) or "group" not in source:
        raise HimalayaError(
            f"{here} needs 'files' or 'hub' (what to read) and 'group' (the fields that name a source item)"
        )
    reader = source.get("reader", "table")
    if not isinstance(reader, str) or reader not in READERS:
        raise unknown_name(f"reader in {here}", str(reader), READERS)
    where = source.get("where", {})
    if not isinstance(where, Mapping):
        raise HimalayaError(f"'where' of {here} is {where!r}; expected field names with the values to keep")
    return Source(
        archive=_text(source, "archive", here) if source.get("archive") is not None else None,
        files=_names(source.get("files", [])),
        reader=reader,
        options=_mapping(source.get("options", {}), f"'options' of {here}", READER_OPTIONS.get(reader, ())),
        where={field: _names(values) for field, values in where.items()},
        group=_names(source["group"]),
        part=_part(source.get("part", "1/1"), here),
        hub=_hub(source["hub"], task) if "hub" in source else None,
    )


def _hub(value: Any, task: str) -> HubSource:
    here = f"'hub' of {task}"
    hub = _mapping(value, here, HUB_KEYS)
    for key in HUB_KEYS:
        if key not in hub and key not in OPTIONAL_HUB_KEYS:
            raise HimalayaError(f"{here} has no '{key}'")
    fields = hub["fields"]
    if not isinstance(fields, Mapping) or not fields or not all(isinstance(path, str) for path in fields.values()):
        raise HimalayaError(f"'fields' of {here} is {fields!r}; expected field names, each with a path in a row")
    for key in ("config", "train", "held_out"):
        if key in hub and not FILE_NAME.fullmatch(_text(hub, key, here)):
            raise HimalayaError(f"'{key}' of {here} is {hub[key]!r}: that is no name of a configuration or a split")
    return HubSource(
        id=_text(hub, "id", here),
        config=_text(hub, "config", here) if "config" in hub else None,
        revision=_text(hub, "revision", here),
        train=_text(hub, "train", here),
        held_out=_text(hub, "held_out", here) if "held_out" in hub else None,
        fields=dict(fields),
        rows=_optional_count(hub, "rows", here),
        licence=_text(hub, "licence", here),
    )


def _part(value: Any, here: str) -> tuple[int, int]:
    found = PART.fullmatch(str(value))
    if not found or int(found[1]) > int(found[2]):
        raise HimalayaError(f"'part' of {here} is {value!r}; expected which of how many parts, such as '1/2'")
    return int(found[1]), int(found[2])


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in value) if isinstance(value, list) else (str(value),)
