"""Makes PEFT know this package's methods as soon as PEFT is imported, without importing it earlier than that."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
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
    """Finds ``peft`` where the other finders do, and gives it a loader that imports the methods afterwards."""

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
            spec.loader = LoadsMethods(spec.loader)
        return spec


class LoadsMethods(Loader):
    """Loads PEFT by its own loader, then the methods, which register themselves."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # such as get_resource_reader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As PEFT's own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run PEFT's code, then import the methods."""
        self._loader.exec_module(module)
        import_module(METHODS)
