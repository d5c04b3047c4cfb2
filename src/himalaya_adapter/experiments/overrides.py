"""The words of a command line: ``KEY=VALUE``, the value in YAML, in ``sweep`` several with commas between them."""

from collections.abc import Sequence
from itertools import product

import yaml

from himalaya_adapter.documents import NOT_YAML, Loader
from himalaya_adapter.errors import HimalayaError


def read_overrides(words: Sequence[str]) -> dict[str, str]:
    """The keys of a line with their values as they are written; of a key that stands twice the last one.

    Args:
        words: Such as ``training.seed=3`` or ``model.adapter.options.target_modules=[q_proj, v_proj]``.

    Raises:
        HimalayaError: A word that is no override.
    """
    return dict(map(_parts, words))


def combinations(words: Sequence[str]) -> list[list[str]]:
    """Every line that a line with several values of its keys stands for, as in ``training.seed=0,1,2``.

    Commas inside of brackets and quotes separate nothing.

    Raises:
        HimalayaError: A word that is no override.
    """
    return [
        list(line) for line in product(*([f"{key}={one}" for one in _split(text)] for key, text in map(_parts, words)))
    ]


def _parts(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if not key or not equals or not all(key.split(".")):
        raise HimalayaError(f"'{word}' is not an override; write KEY=VALUE, for example run=demo-himalaya")
    return key, text


def _split(text: str) -> list[str]:
    """The entries of a YAML list as they are written."""
    listed = f"[{text}]"
    try:
        node = yaml.compose(listed, Loader)
    except NOT_YAML:
        return [text]
    if not isinstance(node, yaml.SequenceNode) or len(node.value) < 2:
        return [text]
    return [listed[one.start_mark.index : one.end_mark.index] for one in node.value]
