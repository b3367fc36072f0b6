"""How many threads may be asked for; apart from what sets them, so that a command can refuse before torch is loaded."""

from typing import Literal

from patchconvnet.errors import UserError

ThreadCount = int | Literal["auto"]
MOST_THREADS = 1024  # far more than fit any machine end the process where the system gives no more


def check_threads(asked: ThreadCount | None) -> None:
    """Refuse what is not a number of threads.

    Raises:
        UserError: it is below 1, or too large for any machine.
    """
    if asked not in (None, "auto") and not (isinstance(asked, int) and 1 <= asked <= MOST_THREADS):
        raise UserError(f"threads is {asked!r}; give a number from 1 to {MOST_THREADS}, or auto")
