"""The keys of a config by their dotted names."""

from collections.abc import Mapping
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import ANY_NAME, REQUIRED, keys_of


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted names; an empty mapping has none."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        path: leaf
        for key, entry in value.items()
        for path, leaf in flattened(entry, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def put(content: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted name in nested mappings, which are made as need be.

    Raises:
        HimalayaError: The name goes on behind a key that has a plain value.
    """
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise HimalayaError(f"{key} cannot be set: '{parent}' holds a plain value, not keys with values")
    content[last] = value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their dotted names as nested mappings."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        put(found, key, value)
    return found


def completed(written: Any) -> dict[str, Any]:
    """The values of a written run config by their dotted names, also of the keys that there were not yet.

    Those have their defaults: a new key's default means what was done before there was the key.
    """
    known = [key for key in keys_of(RunConfig).values() if not key.section and ANY_NAME not in key.path]
    defaults = {key.path: key.default for key in known if key.default not in (REQUIRED, {})}
    return defaults | flattened(written)


def first_difference(written: Any, wanted: Any) -> tuple[str, Any, Any] | None:
    """The first key, in alphabetical order, of which two run configs have other values, and the two values."""
    before, now = completed(written), completed(wanted)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return key, before.get(key), now.get(key)
    return None


def check_same(written: Any, wanted: Any, kept: str, this: str) -> None:
    """Refuse to go on with what was begun with another config.

    Args:
        written: The config that it was begun with.
        wanted: The config now.
        kept: What was begun.
        this: What would go on with it.

    Raises:
        HimalayaError: They differ; the message names the first key that does.
    """
    difference = first_difference(written, wanted)
    if difference is not None:
        key, before, now = difference
        raise HimalayaError(
            f"{kept} was begun with {key}={before!r}, this {this} has {now!r}: choose another run_id or results_dir, "
            "or delete it with overwrite=true"
        )
