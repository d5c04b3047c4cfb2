"""What a file may hold: dataclasses whose fields have their meaning beside them, checked by pydantic."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from himalaya_adapter.errors import HimalayaError, unknown_name

ANY_NAME = "NAME"  # stands in a key for a name that the user chooses
REQUIRED = "required"
PLAIN_TYPES = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}


def no_switch(value: Any) -> Any:
    """Refuse true and false where a number is expected."""
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


Switch = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
Number = Annotated[float, BeforeValidator(no_switch)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(no_switch)]
NotNegative = Annotated[float, Field(ge=0), BeforeValidator(no_switch)]


class Section:
    """Keys with values: the base of every dataclass of a schema."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )


Content = TypeVar("Content", bound=Section)


@dataclass(frozen=True)
class Key:
    """A key of a schema.

    Args:
        path: Its dotted name; ``NAME`` stands for a name of the user's, or a number in a list.
        expected: What it takes, in words: the type, the choices, whether ``null`` is one.
        default: Its default; `REQUIRED` if it has none.
        meaning: What stands beside its field.
        section: Whether it holds further keys.
        choices: All values that it may have, where they are listed.
    """

    path: str
    expected: str
    default: Any
    meaning: str
    section: bool
    choices: tuple[Any, ...]

    @property
    def default_text(self) -> str:
        """The default as YAML writes it."""
        return self.default if isinstance(self.default, str) else json.dumps(self.default)


def parse(kind: type[Content], content: Any, where: str) -> Content:
    """What a file says, as an object of its schema.

    Args:
        kind: The schema.
        content: Nested mappings.
        where: Whose keys they are, for the message.

    Raises:
        HimalayaError: A key that is unknown or missing, or a value that its key does not take.
    """
    try:
        return _adapter(kind).validate_python(content)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _mistake(kind, error, where) from error


@cache
def keys_of(kind: type) -> Mapping[str, Key]:
    """All keys of a schema by their dotted names, sections included, in its order."""
    schema = _adapter(kind).json_schema()
    return {key.path: key for key in _keys(schema, schema.get("$defs", {}), "")}


def key_named(kind: type, path: str) -> Key | None:
    """The key that a dotted name stands for, which may hold names of the user's; ``None`` if there is none."""
    known = keys_of(kind)
    if path in known:
        return known[path]
    return next((key for key in known.values() if ANY_NAME in key.path and _stands_for(key.path, path)), None)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _mistake(kind: type, error: ValidationError, where: str) -> HimalayaError:
    """The first mistake of a file, unknown keys before all else."""
    mistakes = error.errors(include_url=False)
    unknown = [one for one in mistakes if one["type"] in ("unexpected_keyword_argument", "invalid_key")]
    first = (unknown or mistakes)[0]
    parts = [str(part) for part in first["loc"]]
    known = keys_of(kind)
    while parts and first not in unknown and key_named(kind, ".".join(parts)) is None:
        parts.pop()  # what pydantic appends of a list or a choice of types
    path = ".".join(parts)
    if unknown:
        inner = first["input"]
        while isinstance(inner, Mapping) and len(inner) == 1:  # an override says more of the key than its first part
            name, inner = next(iter(inner.items()))
            path += f".{name}"
        parent, _, _ = path.rpartition(".")
        inside = {one.rpartition(".")[2] for one in known if parent and _stands_for(one.rpartition(".")[0], parent)}
        return unknown_name(f"key of {where}", path, [f"{parent}.{name}" for name in inside] or known)
    key = key_named(kind, path)
    if key is None:
        return HimalayaError(f"{where}: found {_shown(first['input'])}, expected keys with values")
    if first["type"] == "missing":
        return HimalayaError(f"key '{path}' of {where} is missing; expected {key.expected}")
    if key.choices and isinstance(first["input"], str):
        return unknown_name(f"{path} of {where}", first["input"], [str(one) for one in key.choices if one is not None])
    return HimalayaError(f"key '{path}' of {where}: found {_shown(first['input'])}, expected {key.expected}")


def _stands_for(pattern: str, path: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(ANY_NAME, "[^.]+"), path) is not None


def _shown(value: Any) -> str:
    words = json.dumps(value, default=str, ensure_ascii=False)
    return words if len(words) <= 60 else f"{words[:60]}…"


def _keys(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    for name, entry in schema["properties"].items():
        path, meaning = f"{prefix}{name}", " ".join(entry.get("description", "").split())
        options = entry.get("anyOf", [entry])
        inner = (option.get(of) for option in options for of in ("additionalProperties", "items"))
        sections = next((one for one in inner if isinstance(one, Mapping) and "$ref" in one), None)
        if sections is not None:
            yield Key(path, f"keys with values ({ANY_NAME})", {}, meaning, True, ())
            path, options = f"{path}.{ANY_NAME}", [sections]
        entry = next((option for option in options if "$ref" in option), entry)
        if "$ref" in entry:
            section = definitions[entry["$ref"].rpartition("/")[2]]
            meaning = meaning or section.get("description", "")  # pydantic leaves one out that says the same
            yield Key(path, f"keys with values ({', '.join(section['properties'])})", {}, meaning, True, ())
            yield from _keys(section, definitions, f"{path}.")
        else:
            default = REQUIRED if name in schema.get("required", ()) else entry.get("default", {})
            choices = tuple(one for option in options for one in _choices(option))
            words = " or ".join(_expected(option) for option in options if option.get("type") != "null")
            optional = ", or null" if {"type": "null"} in options else ""
            yield Key(path, f"{words}{optional}", default, meaning, False, choices)


def _choices(option: Mapping[str, Any]) -> Sequence[Any]:
    return [option["const"]] if "const" in option else option.get("enum", [])


def _expected(option: Mapping[str, Any]) -> str:
    if "expected" in option:
        return option["expected"]
    choices = [str(one) for one in _choices(option)]
    if choices:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if option.get("type") == "array":
        return f"a list of {PLAIN_TYPES.get(option['items'].get('type'), 'values').removeprefix('a ')}"
    words = PLAIN_TYPES.get(option.get("type", ""), "keys with values")
    if "minimum" in option:
        words += f" from {option['minimum']:g}" if "maximum" in option else f" of at least {option['minimum']:g}"
    if "maximum" in option:
        words += f" to {option['maximum']:.0f}"
    return words + (f" above {option['exclusiveMinimum']:g}" if "exclusiveMinimum" in option else "")
