"""The keys of a config by their dotted names, and whether what was begun has the same values."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from himalaya_adapter.documents import read_document
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import ANY_NAME, REQUIRED, keys_of
from himalaya_adapter.storage import is_foreign

CONFIG_FILE = "config.yaml"
OPTIONS = "model.adapter.options."
OPTIMISER = frozenset({"adamw"})


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted names; an empty mapping has none.

    An option of a method stays whole: the keys of its mapping are names of modules, which have dots of their own.

    Raises:
        HimalayaError: A name stands twice, once with dots.
    """
    if not isinstance(value, Mapping) or prefix.startswith(OPTIONS):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, entry in value.items():
        for path, leaf in flattened(entry, f"{prefix}.{key}" if prefix else str(key)).items():
            if path in found:
                raise HimalayaError(f"{path} stands twice: as {found[path]!r} and as {leaf!r}")
            found[path] = leaf
    return found


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


def searched_keys(run: RunConfig) -> dict[str, str]:
    """The keys that the run's search space varies, by their names there.

    Raises:
        HimalayaError: A name that stands for no key or for several, or two names of one key.
    """
    keys = flattened(asdict(run))
    found: dict[str, str] = {}
    for name in run.optuna.search_space:
        key = searched_key(name, keys)
        if key in found.values():
            raise HimalayaError(f"optuna.search_space of run '{run.run_id}' has {key} twice, once as {name}")
        found[name] = key
    return found


def searched_key(name: str, keys: Iterable[str], where: str = "optuna.search_space") -> str:
    """The one key that a name stands for.

    Either a whole key, with ``_`` for dots if you like, or all words of its last part, and others of its path alone:
    ``learning_rate`` is ``training.learning_rate``, ``kd_tree_fanout`` is ``model.kd_tree.fanout``. The optimiser's
    name may stand before its keys' (``adamw_weight_decay``).

    Args:
        name: As it is written.
        keys: All that there are; those of the search itself are not meant.
        where: Where it is written, for the message.

    Raises:
        HimalayaError: No key or several.
    """
    keys = [key for key in keys if not key.startswith("optuna.")]
    words = _words(name) - OPTIMISER
    found = [key for key in keys if key.replace(".", "_") == name.replace(".", "_")]
    found = found or [key for key in keys if _words(key.rpartition(".")[2]) <= words <= _words(key)]
    if not found:
        raise unknown_name(f"key in {where}", name, [key.replace(".", "_") for key in keys])
    if len(found) > 1:
        raise HimalayaError(f"{where}.{name} may mean {' or '.join(found)}: write more of the key")
    return found[0]


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]+", name.casefold()))


def completed(written: Any) -> dict[str, Any]:
    """The values of a written run config by their dotted names, also of the keys that there were not yet.

    Those have their defaults: a new key's default means what was done before there was the key.
    """
    known = [key for key in keys_of(RunConfig).values() if ANY_NAME not in key.path]
    return {key.path: key.default for key in known if key.default not in (REQUIRED, {})} | flattened(written)


def check_folder(folder: Path, run_id: str, kind: str, *before: str) -> None:
    """Refuse a folder with anything else in it than the run or the search that this is.

    The search of run ``a`` and a run called ``a_search`` have folders of one name.

    Args:
        folder: What is gone on with, or deleted.
        run_id: Of the run, or of the searched one, as its config says.
        kind: ``run`` or ``search``.
        before: Files that it may hold before it has its config.

    Raises:
        HimalayaError: As said, or the config there cannot be read.
    """
    path = folder / CONFIG_FILE
    if path.is_file():
        written = read_document(path)
        foreign = not isinstance(written, dict) or str(written.get("run_id")) != run_id
    else:
        foreign = is_foreign(folder, *before)
    if foreign:
        raise HimalayaError(
            f"{folder} is no {kind}'s folder (no {CONFIG_FILE} of '{run_id}'): choose another results_dir or run_id, "
            "or delete it"
        )


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
    before, now = completed(written), completed(wanted)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise HimalayaError(
                f"{kept} was begun with {key}={before.get(key)!r}, this {this} has {now.get(key)!r}: choose another "
                "run_id or results_dir, or delete it with overwrite=true"
            )
