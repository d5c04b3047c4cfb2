"""Makes a method known to PEFT from outside of its source tree."""

from importlib import import_module

import peft
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from himalaya_adapter.registry import Method


def register(method: Method) -> None:
    """Add a method to PEFT's, so that ``get_peft_model`` and ``from_pretrained`` know it. Idempotent.

    The prefix of its parameters is its type in lower case and ``_``.
    """
    if not method.module or peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(method.type) is not None:
        return
    add_peft_type(method.type)
    module = import_module(method.module)
    config, tuner = getattr(module, method.config), getattr(module, method.tuner)
    register_peft_method(name=method.type.lower(), config_cls=config, model_cls=tuner, is_mixed_compatible=False)


def add_peft_type(name: str) -> None:
    """Add a member to PEFT's closed ``PeftType`` enum at run time. Idempotent.

    PEFT has no plug-in discovery and refuses names outside the enum; nothing of its files is rewritten.
    """
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(PeftType.__members__)
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
