"""What a network says about an image, where it looked, and what spoke for it: records and figures."""

from patchconvnet.explanation.explainer import explain, explain_batch
from patchconvnet.explanation.explanation import Explanation, Prediction

__all__ = ["Explanation", "Prediction", "explain", "explain_batch"]
