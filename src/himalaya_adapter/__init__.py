"""HIMALAYA: continual learning of a long stream of tasks with one tiny adapter of constant size."""

import logging

# At import bitsandbytes warns that an optional CPU kernel is missing; nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from .methods import HimalayaConfig, HimalayaModel, save_release  # noqa: E402

__all__ = ["HimalayaConfig", "HimalayaModel", "save_release"]
