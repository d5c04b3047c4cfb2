"""The ranges of ``hyperparameters_to_search``: which key a name means, and which values."""

import re
from collections.abc import Mapping
from typing import Any

from himalaya_adapter.documents import parse_document
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.keys import OPTIONS, searched_key
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import keys_of, parse
from himalaya_adapter.experiments.search_config import SearchRange

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"\s*({NUMBER})\s*(?:-|–|to|\.\.)\s*({NUMBER})\s*")
WIDE = 10.0  # from this quotient of the ends on, a range is drawn on a logarithmic scale


def key_by_name(name: str, where: str) -> str:
    """The one key that a name stands for.

    Raises:
        HimalayaError: No key, or several.
    """
    return name if name.startswith(OPTIONS) else searched_key(name, keys_of(RunConfig), where)


def read_range(value: Any, key: str, where: str) -> SearchRange:
    """Read a range.

    Args:
        value: ``low-high`` (also ``low–high``, ``low to high``, ``low..high``), choices in a list or with commas
            between them, or the entry of a search space.
        key: The key that it is for; one of whole numbers is drawn from them. If the ends lie a factor 10 or more apart
            and above 0, it is drawn on a logarithmic scale.
        where: The field, for the message.

    Raises:
        HimalayaError: Anything else.
    """
    if isinstance(value, Mapping):
        return parse(SearchRange, value, where)
    ends = RANGE.fullmatch(value) if isinstance(value, str) else None
    if ends:
        low, high = float(ends[1]), float(ends[2])
        known, wide = keys_of(RunConfig).get(key), low > 0 and high / low >= WIDE
        if not known and f"{ends[1]}{ends[2]}".isdigit():
            raise HimalayaError(f"{where} is {value!r}; expected {{type: int or uniform, low: …, high: …}}")
        if known and known.expected.startswith("a whole number"):
            return SearchRange("int", low, high, log=True if wide else None)
        return SearchRange("loguniform" if wide else "uniform", low, high)
    choices = parse_document(f"[{value}]", where) if isinstance(value, str) and "," in value else value
    if not isinstance(choices, list):
        raise HimalayaError(
            f"{where} is {value!r}; expected low-high (1e-5-3e-4), choices (4,8,16) or a mapping with type, low and "
            "high; a single value belongs to settings"
        )
    return SearchRange("categorical", choices=choices)
