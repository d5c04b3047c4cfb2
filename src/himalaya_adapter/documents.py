"""YAML and JSON that people write: read once, for runs, plans and streams alike, with one line for what is wrong."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from himalaya_adapter.errors import HimalayaError, one_line

MOST_NODES = 200_000  # of a document with its aliases written out; a few lines of aliases can stand for more than fits
DEEPEST = 40  # levels
INTERPOLATION = "${"
# What is no text without quotes, and the characters that it may begin with: less than in YAML 1.1, where no is false.
PLAIN = {
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"[+-]?(0|[1-9][0-9]*)$", "+-0123456789"),
    "float": (
        r"([+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?|[+-]?\.inf|\.nan)$",
        "+-.0123456789",
    ),
}
NOT_JSON = ("binary", "omap", "pairs", "set", "timestamp", "value")  # types of YAML that JSON does not have
# What PyYAML raises: its own errors, and those of the constructors, such as ValueError of `2020-13-45` or `!!int x`.
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class Loader(yaml.SafeLoader):
    """YAML of what JSON can say: a key stands once, and only true, false and plain numbers such as 7, 0.5 or 2e-4 are
    anything but text: ``no``, ``007``, ``12:30`` and dates are as they are written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML does; refuses a key that stands twice."""
        once([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads: also a text that only it takes for a number stands in quotes."""


Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] not in NOT_JSON
}
Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag.rpartition(":")[2] not in (*PLAIN, *NOT_JSON)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for kind, (form, begins) in PLAIN.items():
    for reader_or_writer in (Loader, Dumper):
        reader_or_writer.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(form), list(begins))


def document_text(content: Mapping[str, Any]) -> str:
    """A content as YAML that `parse_document` reads as the same."""
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def read_document(path: Path) -> Any:
    """The content of a YAML or (``.json``) JSON file.

    Raises:
        HimalayaError: The file cannot be read or parsed, says a key twice, or is too large or too deep.
    """
    return parse_document(read_text(path), str(path), json_text=path.suffix.lower() == ".json")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        HimalayaError: It cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise HimalayaError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def parse_document(text: str, where: str, *, json_text: bool = False) -> Any:
    """The content of a YAML or JSON text.

    Args:
        text: The text.
        where: Where it stands, for the message.
        json_text: Whether it is JSON.

    Raises:
        HimalayaError: As `read_document`.
    """
    try:
        if json_text:
            content = json.loads(text, object_pairs_hook=_object)
            _check_size(content, 0, itertools.repeat(0))  # without aliases, it stands for what is there
            return content
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node, 0, itertools.count())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except NOT_YAML as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise HimalayaError(f"cannot read {where}: {one_line(reason)}") from error


def without_interpolations(content: Any, where: str) -> Any:
    """A content that says all its values itself.

    Configs and plans come from others and what they make is given to others, so none may read the environment.

    Raises:
        HimalayaError: A text in it asks for a value from elsewhere (``${…}``).
    """
    if isinstance(content, dict):
        for key, value in content.items():
            without_interpolations(key, where)
            without_interpolations(value, where)
    elif isinstance(content, list):
        for value in content:
            without_interpolations(value, where)
    elif isinstance(content, str) and INTERPOLATION in content:
        raise HimalayaError(f"{where}: '{content[:60]}' asks for a value from elsewhere; write the value itself")
    return content


def once(names: Sequence[Any]) -> None:
    """Refuse a name that stands twice."""
    for name, count in Counter(map(str, names)).items():
        if count > 1:
            raise ValueError(f"key '{name}' stands twice")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    once([key for key, _ in pairs])
    return dict(pairs)


def _check_size(content: Any, depth: int, count: Iterator[int]) -> None:
    """Refuse what is nested too deeply, or stands for too much: every alias counts as what it stands for.

    Args:
        content: What was read from JSON, or a node of YAML.
        depth: Its level.
        count: Of the nodes that were seen.
    """
    if depth > DEEPEST:
        raise RecursionError
    if next(count) >= MOST_NODES:
        raise ValueError(f"it stands for more than {MOST_NODES} values")
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    if isinstance(content, yaml.MappingNode):
        inner = [one for pair in content.value for one in pair]
    elif isinstance(content, yaml.SequenceNode):
        inner = content.value
    for one in inner:
        _check_size(one, depth + 1, count)
