"""Reads bodies: small ones at once, large ones one after the other on a thread of their own.

So what waits for a large body are other large bodies, and not the tokens of every stream. Most of
reading one is a single call that keeps Python's lock; a second thread would make none sooner, and
hold a second body's objects. Started once; its queue is bounded by the requests that are let in.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["BodyReader"]

AT_ONCE_BYTES_MAX = 64 << 10
"""Read in well under a millisecond, unless somebody makes an effort."""

Result = TypeVar("Result")


class BodyReader:
    """Event loop; owns the thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")

    async def read(self, read: Callable[[bytes], Result], raw: bytes) -> Result:
        """`read(raw)`, and what it raises. `read` is pure."""
        if len(raw) <= AT_ONCE_BYTES_MAX:
            return read(raw)
        return await asyncio.get_running_loop().run_in_executor(self._thread, read, raw)

    def close(self) -> None:
        """Does not wait for a body that is being read."""
        self._thread.shutdown(wait=False, cancel_futures=True)
