"""The package's version; here, so that nothing imports the front door for it."""

__version__ = "0.1.0"
