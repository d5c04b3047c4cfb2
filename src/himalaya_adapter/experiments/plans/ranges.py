"""The ranges of ``hyperparameters_to_search``: ``1e-5-3e-4``, ``4,8,16``, or a mapping of type, low and high."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.search_config import OptunaConfig, SearchRange, check_search

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"\[?\s*({NUMBER})\s*(?:-|–|—|to|\.\.)\s*({NUMBER})\s*\]?")
LOGARITHMIC_WORDS = {"rate", "lambda"}  # learning rates and strengths of a penalty
WIDE = 10.0  # from this quotient of the ends on, a range is drawn on a logarithmic scale


def read_range(value: Any, key: str, *, whole: bool, where: str) -> SearchRange:
    """Read a range.

    Args:
        value: ``a-b`` (also ``a–b``, ``a to b``, ``a..b``), a list or comma list of choices, or a mapping with the
            fields of a range of the search space.
        key: The key that it is for. Learning rates and λs, and ranges whose ends lie a factor 10 apart, are drawn on
            a logarithmic scale if both ends are above 0.
        whole: Whether the key takes whole numbers.
        where: The field, for the message.

    Raises:
        HimalayaError: Anything else, or a range that holds no value.
    """
    if isinstance(value, Mapping):
        found = _from_mapping(value, where)
    elif isinstance(value, list):
        found = SearchRange("categorical", choices=[_value(choice) for choice in value])
    elif isinstance(value, str) and "," in value:
        found = SearchRange("categorical", choices=[_value(choice) for choice in value.strip("[] ").split(",")])
    elif isinstance(value, str) and (ends := RANGE.fullmatch(value.strip())):
        found = _from_ends(float(ends[1]), float(ends[2]), key, whole)
    else:
        raise HimalayaError(
            f"{where} is {value!r}; expected low-high (1e-5-3e-4), choices (4,8,16) or a mapping with type, low and "
            f"high; a single value belongs to settings"
        )
    try:
        check_search(OptunaConfig(search_space={"range": found}), "", ["range"])
    except HimalayaError as error:
        raise HimalayaError(f"{where} is {_short(value)}: {str(error).partition(': ')[2]}") from error
    return found


def centred(values: SearchRange, value: Any) -> Any:
    """``value`` if the range holds it, else the range's centre: of a logarithmic scale the geometric mean, of choices
    the middle one, the lower of two."""
    if values.choices is not None:
        return value if value in values.choices else values.choices[(len(values.choices) - 1) // 2]
    assert values.low is not None
    assert values.high is not None
    if value is not None and values.low <= value <= values.high:
        return value
    logarithmic = values.type == "loguniform" or values.log
    centre = math.sqrt(values.low * values.high) if logarithmic else (values.low + values.high) / 2
    # Two digits are what a person would write; they stay inside, as the centre is not near an end.
    rounded = float(f"{centre:.2g}")
    centre = rounded if values.low <= rounded <= values.high else centre
    return round(centre) if values.type == "int" else centre


def range_values(values: SearchRange) -> list[Any]:
    """The choices of a range, or its ends."""
    if values.choices is not None:
        return values.choices
    return [int(end) if values.type == "int" else end for end in (values.low, values.high) if end is not None]


def range_entry(values: SearchRange) -> dict[str, Any]:
    """The range as an entry of ``optuna.search_space``, without what it leaves open."""
    return {name: value for name, value in asdict(values).items() if value is not None}


def _from_ends(low: float, high: float, key: str, whole: bool) -> SearchRange:
    named = bool(LOGARITHMIC_WORDS & set(re.split(r"[._]", key)))
    logarithmic = low > 0 and (named or high / low >= WIDE)
    if whole:
        return SearchRange("int", low, high, log=True if logarithmic else None)
    return SearchRange("loguniform" if logarithmic else "uniform", low, high)


def _from_mapping(value: Mapping[Any, Any], where: str) -> SearchRange:
    known = [one.name for one in fields(SearchRange)]
    for name in value:
        if name not in known:
            raise unknown_name(f"key in {where}", str(name), known)
    given = dict(value)
    for name in ("low", "high", "step"):
        number = given[name] = _value(given.get(name))
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise HimalayaError(f"{where}.{name} is {number!r}; expected a number")
    if given.get("log") is not None and not isinstance(given["log"], bool):
        raise HimalayaError(f"{where}.log is {given['log']!r}; expected true or false")
    if given.get("choices") is not None:
        if not isinstance(given["choices"], list):
            raise HimalayaError(f"{where}.choices is {given['choices']!r}; expected a list")
        given["choices"] = [_value(choice) for choice in given["choices"]]
    return SearchRange(**given)


def _value(value: Any) -> Any:
    """A number where a text is one (``4``, ``2e-4``), else the value as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(NUMBER, text) else text


def _short(value: Any) -> str:
    return str(dict(value)) if isinstance(value, Mapping) else repr(value)
