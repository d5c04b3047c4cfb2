"""Makes a method known to PEFT from outside of its source tree."""

import peft
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType


def register(name: str, config_cls: type, model_cls: type) -> None:
    """Add ``name`` to PEFT's methods, so that ``get_peft_model`` and ``from_pretrained`` know it. Idempotent.

    Args:
        name: Lower-case name; the prefix of the method's parameters is ``name + "_"``.
        config_cls: The `peft.PeftConfig` subclass.
        model_cls: The `peft.tuners.tuners_utils.BaseTuner` subclass.
    """
    if peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(name.upper()) is None:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls, is_mixed_compatible=False)


def add_peft_type(name: str) -> None:
    """Add a member to PEFT's closed ``PeftType`` enum at run time. Idempotent.

    PEFT has no plug-in discovery and refuses names outside the enum; nothing of its files is rewritten.
    """
    member_name = name.upper()
    if member_name in PeftType.__members__:
        return
    member = str.__new__(PeftType, member_name)
    member._name_ = member_name
    member._value_ = member_name
    member._sort_order_ = len(PeftType.__members__)
    type.__setattr__(PeftType, member_name, member)
    PeftType._member_names_.append(member_name)
    PeftType._member_map_[member_name] = member
    PeftType._value2member_map_[member_name] = member
