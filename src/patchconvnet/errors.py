"""The one error class for mistakes that a user can correct; the command line prints it without a traceback."""

import pickle
import re


class UserError(ValueError):
    """A mistake that the user can correct. Its message says what was given, what is allowed and what to do."""


class NotOfOneImageError(UserError):
    """What no image is to blame for: a server that does not answer, or a file of many images that has changed."""


# what one image may be to blame for, among many: UserError is a ValueError
OF_ONE_IMAGE = (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, ValueError)


def first_line(error: BaseException) -> str:
    """What an error of another library says, cut to fit into a sentence.

    PyTorch answers a file of other objects than tensors with advice to run whatever code is in it; that is left out.
    """
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        found = re.search(r"GLOBAL (\S+)", text)
        return f"it holds Python objects{f' ({found[1]})' if found else ''}, which are not loaded: they could run code"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text.partition("\n")[0] or type(error).__name__


def shortened(value: object) -> str:
    """A value as Python writes it, cut to fit into a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
