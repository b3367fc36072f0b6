"""What a network says about a picture, where it looked, and what spoke for it: records and figures."""

from patchconvnet.explain.maps import Explanation, Prediction, explain, explain_batch

__all__ = ["Explanation", "Prediction", "explain", "explain_batch"]
