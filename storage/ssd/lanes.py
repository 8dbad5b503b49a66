"""One bounded crossing from the event loop to threads, and back.

Invariant: a call that was started has ended when `run` returns or raises, also when the awaiting
task is cancelled: the memory it reads or writes is not touched any more. At most `queue_max` calls
are under way or queued; later ones wait on the event loop. Used from one event loop.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["Lane"]

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """Threads of one kind; with one thread, calls run in the order in which they came."""

    def __init__(self, name: str, thread_count: int, queue_max: int) -> None:
        self._executor = ThreadPoolExecutor(thread_count, thread_name_prefix=name)
        self._slots = asyncio.BoundedSemaphore(queue_max)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`call(*args)` on a thread of this lane."""
        async with self._slots:
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._executor, lambda: call(*args, **kwargs))
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                await _ended(future)
                raise

    async def close(self) -> None:
        """Lets queued calls end, then the threads."""
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)


async def _ended(future: "asyncio.Future[T]") -> None:
    """Returns when the call has ended, however often the waiting task is cancelled meanwhile."""
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # looked at, so that a failure nobody awaits is not reported as lost
