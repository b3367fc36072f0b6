"""Shards that a server does not send, left out as long as their images are within the budget."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from patchconvnet.data.readable import allowed
from patchconvnet.errors import UserError

T = TypeVar("T")


class Losses:
    """Counts the images of shards that were given up.

    Args:
        images: how many each shard has; a shard that is not among them may not be lost.
        max_bad: how many images may be lost, as "0.1%" or "20"; None for not one.
    """

    def __init__(self, images: Mapping[str, int], max_bad: str | None) -> None:
        self.places: list[str] = []
        self._images, self._total = images, sum(images.values())
        self._most = allowed(max_bad or "0", self._total)

    def unless_lost(self, shard: str, get: Callable[[], T]) -> T | None:
        """What `get` returns, or None where it fails and the shard's images are within the budget.

        Raises:
            UserError: as `get` does, where they are not.
        """
        try:
            return get()
        except UserError as error:
            lost = self._images.get(shard)
            if lost is None or len(self.places) + lost > self._most:
                if lost is None or not self._most:
                    raise
                bad = len(self.places) + lost
                message = f"{error}; of {self._total} images {self._most} may be skipped, and {bad} would be"
                raise UserError(message) from error
            self.places += [f"{shard}::{number}" for number in range(lost)]
            return None
