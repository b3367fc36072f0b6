"""How much of something, bytes or pixels, all requests together hold in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """An amount that requests take their shares of.

    Args:
        most: that may be taken at once.
    """

    def __init__(self, most: int):
        self.most, self.used = most, 0
        self._given_back = asyncio.Condition()

    def take(self, count: int) -> bool:
        """Take so much, unless it is not there."""
        if self.used + count > self.most:
            return False
        self.used += count
        return True

    async def give_back(self, count: int) -> None:
        """It is no longer needed."""
        async with self._given_back:
            self.used -= count
            self._given_back.notify_all()

    @asynccontextmanager
    async def share(self, count: int) -> AsyncIterator[None]:
        """Hold so much, at most all of it; wait until it is there."""
        count = min(count, self.most)
        async with self._given_back:
            await self._given_back.wait_for(lambda: self.take(count))
        try:
            yield
        finally:
            await asyncio.shield(self.give_back(count))
