"""Makes PEFT know this package's methods as soon as PEFT is imported, without importing it earlier than that."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

METHODS = f"{__package__}.methods"


def register_with_peft() -> None:
    """Import the methods now if PEFT is imported already, else right after it will have been."""
    if "peft" in sys.modules:
        import_module(METHODS)
    else:
        sys.meta_path.insert(0, PeftFinder())


class PeftFinder(MetaPathFinder):
    """Finds ``peft`` where the other finders do, and has its loader import the methods afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of ``peft``; ``None`` for any other module."""
        if fullname != "peft":
            return None
        # It stays in place until PEFT is loaded: whoever only asks whether PEFT is installed finds it here, too.
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_with_methods(module: ModuleType) -> None:
                load(module)
                import_module(METHODS)

            vars(spec.loader)["exec_module"] = load_with_methods  # of this loader alone: each search makes a new one
        return spec
