"""One bounded crossing from the event loop to threads, and back.

Invariant: a call that was started has ended when `run` returns or raises, also when the awaiting
task is cancelled: the memory it reads or writes is not touched any more. At most `queue_max` calls
are under way, queued or waiting for that; one more is refused at once. Used from one event loop.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from storage.errors import TierBusyError

__all__ = ["Lane", "settled"]

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """Threads of one kind; with one thread, calls run in the order in which they came."""

    def __init__(self, name: str, thread_count: int, queue_max: int) -> None:
        self._executor = ThreadPoolExecutor(thread_count, thread_name_prefix=name)
        self._queue_max = queue_max
        self._count = 0

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`call(*args)` on a thread of this lane. Raises TierBusyError when too many wait."""
        if self._count >= self._queue_max:
            raise TierBusyError(f"{self._count} calls wait for the SSD already")
        loop = asyncio.get_running_loop()
        self._count += 1
        try:
            future = loop.run_in_executor(self._executor, lambda: call(*args, **kwargs))
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                await settled(future)
                raise
        finally:
            self._count -= 1

    async def close(self, last: Callable[[], None] | None = None) -> None:
        """Lets queued calls end, then `last`, then the threads."""
        loop = asyncio.get_running_loop()
        if last is not None:
            await loop.run_in_executor(self._executor, last)
        await loop.run_in_executor(None, self._executor.shutdown)


async def settled(future: "asyncio.Future[T]") -> None:
    """Returns when the call has ended, however often the waiting task is cancelled meanwhile."""
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # looked at, so that a failure nobody awaits is not reported as lost
