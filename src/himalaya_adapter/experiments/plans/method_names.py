"""Which PEFT method a plan means by a name such as ``LILAC (Layer-Integrated …)`` or ``LoRA-8``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from peft import PeftType

from himalaya_adapter.errors import HimalayaError, unknown_name

OWN_METHODS = ("HIMALAYA", "LILAC", "COLTAS", "GLODIS", "LOREFT", "O_LORA")
# A plan's way to write a name that is spelt otherwise elsewhere.
OTHER_SPELLINGS: Mapping[str, str] = MappingProxyType({"reftlore": "LOREFT"})
# The key that a number after a method's name sets.
SIZE_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "LORA": "model.adapter.options.r",
        "O_LORA": "model.adapter.options.r",
        "LOREFT": "model.adapter.options.r",
        "LILAC": "model.adapter.dictionary_size",
        "GLODIS": "model.adapter.options.dictionary_size",
    }
)
END_OF_NAME = re.compile(r"\s*(?:[(:,;.]|\s[–—-])")
SIZED = re.compile(r"(.+?)[\s_-]*r?=?(\d+)")


@dataclass(frozen=True)
class NamedMethod:
    """A method that a plan names.

    Args:
        name: As the plan writes it, for reports.
        type: The PEFT method.
        values: What the name says of its size, by keys.
    """

    name: str
    type: str
    values: Mapping[str, int]


def named_method(text: str, where: str) -> NamedMethod:
    """The method that a text begins with.

    Args:
        text: Prose whose first words, up to a bracket, dash, colon or comma, or whose first word is the name.
        where: The field, for the message.

    Raises:
        HimalayaError: The name is no method's.
    """
    names = (*(kind.value for kind in PeftType), *OWN_METHODS)
    known = {**{_plain(name): name for name in names}, **OTHER_SPELLINGS}
    head = END_OF_NAME.split(text.strip(), maxsplit=1)[0]
    for name in dict.fromkeys((head, *head.split()[:1])):
        if _plain(name) in known:
            return NamedMethod(name, known[_plain(name)], {})
        sized = SIZED.fullmatch(name)
        if sized and _plain(sized[1]) in known:
            kind = known[_plain(sized[1])]
            if kind not in SIZE_KEYS:
                raise HimalayaError(
                    f"{where}: what {sized[2]} in '{name}' means for {kind} is not known; leave it out"
                )
            return NamedMethod(name, kind, {SIZE_KEYS[kind]: int(sized[2])})
    name = head if len(head) <= 40 else text.split()[0]
    raise unknown_name(f"method in {where}", name, sorted(set(known.values())))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
