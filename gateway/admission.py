"""How many requests at a time: of the gateway, and of one key. Event loop; owns the counts.

Invariant: every place that was taken is given back, whatever ended its request.
"""

import asyncio
import contextlib
from collections.abc import Iterator

from gateway.errors import GatewayBusyError, KeyBusyError
from kvtier.serving import ShuttingDownError

__all__ = ["Admission"]


class Admission:
    def __init__(self, requests_max: int, per_key_max: int) -> None:
        self._requests_max = requests_max
        self._per_key_max = per_key_max
        self._of_key: dict[str, int] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.count = 0
        """Requests under way."""

    @contextlib.contextmanager
    def place(self, key_id: str) -> Iterator[None]:
        """A place for as long as the context. Raises ShuttingDownError, GatewayBusyError,
        KeyBusyError."""
        if self._draining:
            raise ShuttingDownError("the gateway is draining; send again")
        if self.count >= self._requests_max:
            raise GatewayBusyError("the gateway has as many requests as it takes; send again")
        running = self._of_key.get(key_id, 0)
        if running >= self._per_key_max:
            raise KeyBusyError(
                f"this key has {running} requests under way, as many as it may; wait for one to end"
            )
        self._of_key[key_id] = running + 1
        self.count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._give_back(key_id)

    def drain(self) -> None:
        """Refuses new requests from now on."""
        self._draining = True

    @property
    def draining(self) -> bool:
        return self._draining

    async def idle(self, seconds: float) -> bool:
        """Waits until nothing is under way; True when that is so."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def check_integrity(self) -> None:
        assert self.count == sum(self._of_key.values())
        assert self._idle.is_set() == (self.count == 0)
        assert all(count > 0 for count in self._of_key.values())

    def _give_back(self, key_id: str) -> None:
        self.count -= 1
        left = self._of_key[key_id] - 1
        if left:
            self._of_key[key_id] = left
        else:
            del self._of_key[key_id]
        if not self.count:
            self._idle.set()
