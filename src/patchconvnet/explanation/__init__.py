"""What a network says about an image, with its attention and its evidence: records and figures."""

from patchconvnet.explanation.explainer import explain
from patchconvnet.explanation.explanation import Explanation
from patchconvnet.explanation.maps import Maps, Prediction

__all__ = ["Explanation", "Maps", "Prediction", "explain"]
