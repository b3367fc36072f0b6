"""Image classifiers that show where they look (arXiv 2112.13692). Importing this registers its models in timm."""

from patchconvnet._version import __version__
from patchconvnet.errors import UserError
from patchconvnet.models import Output, PatchConvNet, PatchConvNetConfig, load, with_attention_pooling

__all__ = [
    "Output",
    "PatchConvNet",
    "PatchConvNetConfig",
    "UserError",
    "__version__",
    "load",
    "with_attention_pooling",
]
