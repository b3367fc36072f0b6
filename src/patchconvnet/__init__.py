"""Image classifiers that show where they look (arXiv 2112.13692). Importing this package registers its models in timm."""

from patchconvnet.errors import UserError
from patchconvnet.models import Output, PatchConvNet, PatchConvNetConfig

__version__ = "0.1.0"

__all__ = ["Output", "PatchConvNet", "PatchConvNetConfig", "UserError", "__version__"]
