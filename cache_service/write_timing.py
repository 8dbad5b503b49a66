"""WriteTiming: when a block goes into the queue of writes to the SSD.

    committed   as soon as it is stored, and again when it is used and still not there: warm after
                a crash
    leaving     shortly before it leaves host memory (`write_ahead.py`): fewer writes

Invariant: what is queued was asked of admission; whoever decides the time does not decide that.
Owned by the SSD writer; event loop only.
"""

from collections.abc import Sequence
from typing import Protocol

from cache_service.write_queue import WriteQueue

__all__ = ["AtCommit", "WriteTiming"]


class WriteTiming(Protocol):
    """Fills the queue. Both counts returned are of blocks that admission turned away."""

    @property
    def due(self) -> bool:
        """True when there is something for a batch, now or once `refill` asks again."""

    def committed(self, rows: Sequence[int]) -> int:
        """Blocks came into host memory, in the order of their chain."""

    def used(self, row: int) -> int:
        """A block in host memory that the SSD lacks was used, and all before it."""

    def refill(self) -> None:
        """Queues what should go now. Called before each batch."""

    def gave_up(self) -> None:
        """The SSD takes nothing now: everything that waited was let go."""


class AtCommit:
    """See `WriteTiming`."""

    def __init__(self, queue: WriteQueue) -> None:
        self._queue = queue

    @property
    def due(self) -> bool:
        return self._queue.due

    def committed(self, rows: Sequence[int]) -> int:
        return self._queue.offer(rows)

    def used(self, row: int) -> int:
        return self._queue.offer([row])

    def refill(self) -> None:
        self._queue.offer_deferred()

    def gave_up(self) -> None:
        """What was let go is offered again when it is used."""
