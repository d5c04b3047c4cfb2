"""HIMALAYA: continual learning of a long stream of tasks with one tiny adapter of constant size.

Importing the package costs next to nothing: what is named here is loaded when it is first used. From then on, or as
soon as anything imports ``peft``, PEFT knows the package's methods.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from himalaya_adapter.peft_hook import register_with_peft

if TYPE_CHECKING:
    from himalaya_adapter.methods import HimalayaConfig, HimalayaModel, save_release
    from himalaya_adapter.training.task_callback import TaskCallback

__all__ = ["HimalayaConfig", "HimalayaModel", "TaskCallback", "save_release"]

# At import bitsandbytes warns that an optional CPU kernel is missing; nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
register_with_peft()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    place = "training.task_callback" if name == "TaskCallback" else "methods"
    return getattr(import_module(f"{__name__}.{place}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
