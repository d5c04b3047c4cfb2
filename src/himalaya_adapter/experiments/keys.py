"""The keys of a config by their dotted names."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from himalaya_adapter.experiments.run_config import RunConfig


def leaf_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """The dotted names of all leaves of a config."""
    keys: list[str] = []
    for key in map(str, config):
        section = OmegaConf.is_dict(config) and not OmegaConf.is_missing(config, key) and config[key]
        deeper = isinstance(section, DictConfig) and len(section) > 0
        keys += leaf_keys(cast(DictConfig, section), f"{prefix}{key}.") if deeper else [f"{prefix}{key}"]
    return keys


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted names; an empty mapping has none."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        path: leaf
        for key, entry in value.items()
        for path, leaf in flattened(entry, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def completed(written: Any) -> dict[str, Any]:
    """The values of a written run config by their dotted names, also of the keys that there were not yet.

    Those have their defaults: a new key's default means what was done before there was the key.
    """
    return flattened(asdict(RunConfig())) | flattened(written)


def first_difference(written: Any, wanted: Any) -> tuple[str, Any, Any] | None:
    """The first key, in alphabetical order, of which two run configs have other values, and the two values."""
    before, now = completed(written), completed(wanted)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return key, before.get(key), now.get(key)
    return None
