"""What the network is: stem, trunk, pooling heads, the family, attention pooling on timm's networks, weights."""

from patchconvnet.models.backbones import AttentionPooled, AttentionPooledConfig, with_attention_pooling
from patchconvnet.models.classifier import AttentionClassifier, Output
from patchconvnet.models.loading import default_model, load
from patchconvnet.models.patchconvnet import PatchConvNet, PatchConvNetConfig
from patchconvnet.models.pooling import Pooled
from patchconvnet.models.weights import Metadata

__all__ = [
    "AttentionClassifier",
    "AttentionPooled",
    "AttentionPooledConfig",
    "Metadata",
    "Output",
    "PatchConvNet",
    "PatchConvNetConfig",
    "Pooled",
    "default_model",
    "load",
    "with_attention_pooling",
]
