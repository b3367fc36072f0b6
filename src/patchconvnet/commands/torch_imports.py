"""The imports that a command waits for: torch and timm, without PyTorch's compiler and without collecting garbage."""

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


def import_networks() -> None:
    """Import torch, timm and this package's networks, as the import that comes first would, but sooner.

    Of 4.0 seconds it saves 2.5: torchvision and timm load the compiler only to tell it what to leave alone, and no
    garbage is collected meanwhile.
    """
    if "timm" in sys.modules:
        return
    with uncollected():
        importlib.import_module("torch")  # its finders know the compiler
        with _compiler_left_out():
            importlib.import_module("patchconvnet.models")


@contextmanager
def uncollected() -> Iterator[None]:
    """While this lasts no garbage is collected: in the midst of imports there is none, and what is searched grows.

    What there is at its end is left out of later collections too.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


@contextmanager
def _compiler_left_out() -> Iterator[None]:
    """While this lasts, who imports `torch._dynamo` gets what does the same as long as nothing is compiled.

    torchvision's `ops/roi_align.py` takes a function from it that it asks when it is called, and timm's NaFlexViT marks
    an iterator as not to be compiled. Who asks for anything else gets the compiler, and so does everybody afterwards.
    """
    if COMPILER in sys.modules:
        yield
        return
    sys.modules[COMPILER] = _StandIn(COMPILER, disable=_left_as_it_is)
    sys.modules[f"{COMPILER}.utils"] = _StandIn(f"{COMPILER}.utils", is_compile_supported=_is_compile_supported)
    try:
        yield
    finally:
        _StandIn.remove()


class _StandIn(ModuleType):
    def __init__(self, name: str, **functions: Callable[..., Any]):
        super().__init__(name)
        vars(self).update(functions)

    @staticmethod
    def remove() -> None:
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]

    def __getattr__(self, name: str) -> Any:
        of_a_package = name == "__path__" and self.__name__ == COMPILER  # another module in it is imported
        if name.startswith("__") and not of_a_package:  # which all modules are asked for, now and then
            raise AttributeError(name)
        self.remove()
        return getattr(importlib.import_module(self.__name__), name)


def _left_as_it_is(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else (lambda function: function)


def _is_compile_supported(device_type: str) -> bool:
    return bool(importlib.import_module(f"{COMPILER}.utils").is_compile_supported(device_type))
