"""What the network is: stem, trunk, pooling heads, the family, its weights."""

from patchconvnet.models.classifier import Output
from patchconvnet.models.patchconvnet import PatchConvNet, PatchConvNetConfig
from patchconvnet.models.pooling import Pooled
from patchconvnet.models.weights import Metadata

__all__ = ["Metadata", "Output", "PatchConvNet", "PatchConvNetConfig", "Pooled"]
