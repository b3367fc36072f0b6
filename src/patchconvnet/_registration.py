"""timm knows this package's models after `import patchconvnet`, which by itself waits for neither torch nor timm.

timm has no plugin entry points: a model is registered by importing the module that defines it. If timm has been
imported that is done at once, and else as soon as it is, by a finder that leaves the import of timm to the usual ones.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


class _AfterTimm(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("timm")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                importlib.import_module("patchconvnet.models")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_with_timm() -> None:
    """Register the models in timm: now, if timm has been imported, or else when it is."""
    if "timm" in sys.modules:
        importlib.import_module("patchconvnet.models")
    else:
        sys.meta_path.insert(0, _AfterTimm())
