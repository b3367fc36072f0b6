"""What a network says about an image, with its attention and its evidence: records and figures.

Names are imported when they are first used: a process that only draws waits for neither torch nor timm.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchconvnet.explanation.explainer import explain
    from patchconvnet.explanation.explanation import Explanation
    from patchconvnet.explanation.maps import Maps, Prediction

__all__ = ["Explanation", "Maps", "Prediction", "explain"]

_HOMES = {"explain": "explainer", "Explanation": "explanation", "Maps": "maps", "Prediction": "maps"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
