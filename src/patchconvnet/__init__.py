"""Image classifiers that show which patches a decision came from (arXiv 2112.13692).

Names are imported when they are first used, so that `import patchconvnet` takes no time. It registers the models in
timm: `timm.create_model("patchconvnet_s60")` works after it, whichever of the two was imported first.
"""

import importlib
from typing import TYPE_CHECKING, Any

from patchconvnet._registration import register_with_timm
from patchconvnet._version import __version__

if TYPE_CHECKING:
    from patchconvnet.api import audit, evaluate, train
    from patchconvnet.errors import UserError
    from patchconvnet.explanation import Explanation, explain
    from patchconvnet.faithfulness.attribute import attribute
    from patchconvnet.models import Output, PatchConvNet, PatchConvNetConfig, load, with_attention_pooling

__all__ = [
    "Explanation",
    "Output",
    "PatchConvNet",
    "PatchConvNetConfig",
    "UserError",
    "__version__",
    "attribute",
    "audit",
    "evaluate",
    "explain",
    "load",
    "train",
    "with_attention_pooling",
]

_HOMES = {
    "patchconvnet.api": ("audit", "evaluate", "train"),
    "patchconvnet.errors": ("UserError",),
    "patchconvnet.explanation": ("Explanation", "explain"),
    "patchconvnet.faithfulness.attribute": ("attribute",),
    "patchconvnet.models": ("Output", "PatchConvNet", "PatchConvNetConfig", "load", "with_attention_pooling"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return globals().setdefault(name, getattr(importlib.import_module(home), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_timm()
