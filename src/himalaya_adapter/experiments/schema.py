"""What a file may hold: dataclasses whose fields have their meaning beside them, checked by pydantic."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from himalaya_adapter.errors import HimalayaError, unknown_name

ANY_NAME = "NAME"  # stands in a key for a name that the user chooses
REQUIRED = "required"
SECTION = "keys with values"
TYPES = {
    **{"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"},
    **{"array": "a list", "null": "null"},
}
LIMITS = {
    **{"minimum": "of at least", "exclusiveMinimum": "above"},
    **{"maximum": "of at most", "exclusiveMaximum": "below"},
}
LONGEST = 60  # characters that are shown of a wrong value


Switch = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Count = Annotated[Whole, Field(ge=1)]
Number = Annotated[float, Strict()]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]


def as_written(value: Any) -> Any:
    """Refuse a number with a point or an exponent as text: what it was written as, 1.10 or 1e3, is gone."""
    if isinstance(value, float):
        raise ValueError("not text")
    return value


Named = Annotated[str, BeforeValidator(as_written), Field(json_schema_extra={"expected": "text (quote a number)"})]


class Section:
    """Keys with values: the base of every dataclass of a schema."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )


Content = TypeVar("Content", bound=Section)


@dataclass(frozen=True)
class Key:
    """A key of a schema that holds a value.

    Args:
        path: Its dotted name; ``NAME`` stands for a name of the user's, or a number in a list.
        expected: What it takes, in words.
        default: Its default; `REQUIRED` if it has none.
        meaning: What stands beside its field.
    """

    path: str
    expected: str
    default: Any
    meaning: str

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
    """All keys of a schema by their dotted names, in its order."""
    schema = _adapter(kind).json_schema()
    return {key.path: key for key in _keys(schema, schema.get("$defs", {}), "")}


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _mistake(kind: type, error: ValidationError, where: str) -> HimalayaError:
    """The first mistake of a file, unknown keys before all else."""
    mistakes = error.errors(include_url=False)
    unknown = [one for one in mistakes if one["type"] in ("unexpected_keyword_argument", "invalid_key")]
    first = (unknown or mistakes)[0]
    parts = [str(part) for part in first["loc"] if part != "[key]"]  # so pydantic marks that a name is wrong
    path, known = ".".join(parts), {_named(key.path, parts): key for key in keys_of(kind).values()}
    if unknown:
        inner = first["input"]
        while isinstance(inner, Mapping) and len(inner) == 1:  # an override says more of the key than its first part
            name, inner = next(iter(inner.items()))
            path += f".{name}"
        return unknown_name(f"key of {where}", path, known)
    here = f"key '{path}' of {where}" if path else where
    # What stands behind a key is a place in its list; what is no key is a section.
    expected = next((known[key].expected for key in known if f"{path}.".startswith(f"{key}.")), SECTION)
    if first["type"] == "missing":
        return HimalayaError(f"{here} is missing; expected {expected}")
    value = json.dumps(first["input"], default=str, ensure_ascii=False)
    value = value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
    return HimalayaError(f"{here}: found {value}, expected {expected}")


def _named(key: str, parts: Sequence[str]) -> str:
    """A key with the name that the user has chosen, as the parts of a path have it."""
    own = key.split(".")
    names = zip(own, [*parts, *own[len(parts) :]], strict=False)
    return ".".join(name if part == ANY_NAME else part for part, name in names)


def _keys(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    for name, entry in schema["properties"].items():
        path, options = f"{prefix}{name}", entry.get("anyOf", [entry])
        inner = [(f"{path}.", option) for option in options]
        for of in ("additionalProperties", "items"):
            inner += [(f"{path}.{ANY_NAME}.", option.get(of)) for option in options]
        sections = [(place, one["$ref"]) for place, one in inner if isinstance(one, Mapping) and "$ref" in one]
        for place, reference in sections:
            yield from _keys(definitions[reference.rpartition("/")[2]], definitions, place)
        if not sections:
            default = REQUIRED if name in schema.get("required", ()) else entry.get("default", {})
            meaning = " ".join(entry.get("description", "").split())
            yield Key(path, ", or ".join(_expected(option) for option in options), default, meaning)


def _expected(option: Mapping[str, Any]) -> str:
    if "expected" in option:
        return option["expected"]
    choices = [option["const"]] if "const" in option else option.get("enum")
    if choices:
        return f"one of {', '.join(map(str, choices))}"
    limits = [f" {words} {option[limit]}" for limit, words in LIMITS.items() if limit in option]
    return TYPES.get(option.get("type", ""), SECTION) + " and".join(limits)
