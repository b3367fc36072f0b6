"""Image classifiers that show where they look (arXiv 2112.13692). Importing this package registers its models in timm."""

__version__ = "0.1.0"
