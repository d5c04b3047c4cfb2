"""What every key of a run config takes and means, read from the schema itself: for messages, docs and prompts."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from types import MappingProxyType, NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.search_config import DIRECTIONS, TYPES
from himalaya_adapter.experiments.validation import CHOICES
from himalaya_adapter.registry import METHODS

PLAIN_TYPES: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
ALL_CHOICES: Mapping[str, Sequence[object]] = MappingProxyType(
    {
        **CHOICES,
        **{
            key: (only,)
            for method in METHODS.values()
            for key, (only, _) in method.fixed.items()
            if not isinstance(only, bool)
        },
        "optuna.direction": DIRECTIONS,
        "optuna.search_space.NAME.type": TYPES,
    }
)
ARGUMENT = re.compile(r"(?m)^    (\w+): ((?:.+)(?:\n {8}.+)*)")
ANY_NAME = "NAME"  # stands in a path for a name that the user chooses
REQUIRED = "required"


@dataclass(frozen=True)
class Key:
    """A key of a run config.

    Args:
        path: Its dotted name; ``NAME`` stands for a name of the user's.
        expected: What it takes, in words: the type, the choices, whether ``null`` is one.
        default: Its default as YAML writes it, or ``required``.
        meaning: Its line in the docstring of its dataclass.
        section: Whether it holds further keys.
    """

    path: str
    expected: str
    default: str
    meaning: str
    section: bool = False


@cache
def run_keys() -> dict[str, Key]:
    """All keys of a run config by their dotted names, sections included, in the order of the schema."""
    return {key.path: key for key in _keys(RunConfig, "")}


def key_named(path: str) -> Key | None:
    """The key that a dotted name stands for, which may hold names of the user's; ``None`` if there is none."""
    known = run_keys()
    if path in known:
        return known[path]
    patterns = (key for key in known.values() if ANY_NAME in key.path)
    return next((key for key in patterns if re.fullmatch(key.path.replace(ANY_NAME, r"[^.]+"), path)), None)


def _keys(kind: Any, prefix: str) -> Iterator[Key]:
    hints, meanings = get_type_hints(kind), _meanings(kind)
    for entry in fields(kind):
        path, hint = prefix + entry.name, hints[entry.name]
        if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            yield Key(path, f"keys with values ({ANY_NAME})", "", meanings[entry.name], section=True)
            path, hint = f"{path}.{ANY_NAME}", get_args(hint)[1]
        if is_dataclass(hint):
            names = ", ".join(one.name for one in fields(hint))
            yield Key(path, f"keys with values ({names})", "", meanings[entry.name], section=True)
            yield from _keys(hint, f"{path}.")
        else:
            yield Key(path, _expected(path, hint), _default(entry), meanings[entry.name])


def _meanings(kind: type) -> dict[str, str]:
    documented = inspect.cleandoc(kind.__doc__ or "")
    return {name: " ".join(text.split()) for name, text in ARGUMENT.findall(documented)}


def _expected(path: str, hint: Any) -> str:
    options = [one for one in get_args(hint) if one is not NoneType] if NoneType in get_args(hint) else [hint]
    optional = NoneType in get_args(hint)
    if path in ALL_CHOICES:
        choices = [str(choice) for choice in ALL_CHOICES[path] if choice is not None]
        words = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    elif get_origin(options[0]) is list:
        inner = PLAIN_TYPES.get(get_args(options[0])[0], "values")
        words = f"a list of {inner.removeprefix('a ')}"
    elif get_origin(options[0]) is dict:
        words = "keys with values"
    else:
        words = PLAIN_TYPES[options[0]]
    return f"{words}, or null" if optional else words


def _default(entry: Field[Any]) -> str:
    value = {} if entry.default is NO_DEFAULT else entry.default
    if value == MISSING:
        return REQUIRED
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
