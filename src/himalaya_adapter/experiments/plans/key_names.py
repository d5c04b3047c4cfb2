"""Which key of a run config a plan means by a name such as ``tau_similarity_threshold``."""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.key_table import ALL_CHOICES
from himalaya_adapter.experiments.search_config import searched_key

SPELT_OUT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"lr": ("learning", "rate"), "τ": ("tau",), "λ": ("lambda",), "wd": ("weight", "decay")}
)


def key_by_name(name: str, keys: Iterable[str], where: str) -> str:
    """The one key that a name stands for.

    Args:
        name: The plan's name.
        keys: The keys that it may stand for.
        where: The field, for the message.

    Raises:
        HimalayaError: No key, or several.
    """
    known = list(keys)
    found = keys_by_name(name, known)
    if not found:
        raise unknown_name(f"key in {where}", name, [_tails(key)[0] for key in known])
    if len(found) > 1:
        raise HimalayaError(f"{where}.{name} may mean {' or '.join(found)}: write more of the key")
    return found[0]


def keys_by_name(name: str, keys: Sequence[str]) -> list[str]:
    """The keys that a name may stand for.

    Those of the first of these rules that finds any: the key itself or the last parts of its path, with ``_`` for dots
    (``kd_tree_fanout``); the words of its last part in any order, with words of its path or a choice of its section
    (``tau_similarity_threshold``; ``adamw_weight_decay``, as adamw is a choice of ``training.optimizer``); some of the
    words of its path (``similarity_threshold``). Case and other separators do not matter.
    """
    plain = "_".join(re.findall(r"[^\W_]+", name.casefold()))
    words = _words(name)
    rules = (
        [key for key in keys if plain in map(str.casefold, _tails(key))],
        [key for key in keys if _words(key.rpartition(".")[2]) <= words <= _words(key) | _choices_beside(key)],
        [key for key in keys if words and words <= _words(key)],
    )
    return next((found for found in rules if found), [])


def search_name(name: str, key: str, keys: list[str]) -> str:
    """The name under which ``optuna.search_space`` holds a key: the plan's own if it is an end of the key's path, else
    the shortest end, of those that the search reads as the key.

    Args:
        name: The plan's name.
        key: The key.
        keys: All keys of the run.
    """
    tails = _tails(key)
    for candidate in (*(tail for tail in tails if tail == name), *tails):
        with contextlib.suppress(HimalayaError):  # no key or several
            if searched_key(candidate, keys) == key:
                return candidate
    raise HimalayaError(f"the search space has no name for {key} alone")


def _tails(key: str) -> list[str]:
    """The ends of a path from the shortest on: ``fanout``, ``kd_tree_fanout``, ``model_kd_tree_fanout``."""
    parts = key.split(".")
    return ["_".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]


def _words(name: str) -> frozenset[str]:
    words = re.findall(r"[^\W_]+", name.casefold())
    return frozenset(word for one in words for word in SPELT_OUT.get(one, (one,)))


def _choices_beside(key: str) -> frozenset[str]:
    section = key.rpartition(".")[0]
    choices = (values for path, values in ALL_CHOICES.items() if path.rpartition(".")[0] == section)
    return frozenset(str(value) for values in choices for value in values)
