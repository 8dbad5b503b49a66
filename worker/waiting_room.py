"""WaitingRoom: the requests that have no pages, and which of them are looked at next.

Invariant: each waiting request is in it once, in the queue of its priority and tenant, in order of
arrival: one that is put back comes back to its place. Owned by the engine's thread.
"""

from bisect import insort
from collections.abc import Callable, Iterator

from worker.admission import CANDIDATES_MAX
from worker.live_request import LiveRequest

__all__ = ["WaitingRoom"]

QUEUE_CANDIDATES_MIN = 8
"""So many of each queue are looked at, where there are many."""

_Queue = tuple[int, str]


class WaitingRoom:
    """Requests by priority and tenant."""

    def __init__(self) -> None:
        self._queues: dict[_Queue, list[LiveRequest]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[LiveRequest]:
        """Over a copy: whoever is met may be removed."""
        return iter([live for queue in self._queues.values() for live in queue])

    def add(self, live: LiveRequest) -> None:
        insort(self._queues.setdefault(_queue_of(live), []), live, key=_number)
        self._count += 1

    def remove(self, live: LiveRequest) -> None:
        queue = self._queues[_queue_of(live)]
        queue.remove(live)
        self._count -= 1
        if not queue:
            del self._queues[_queue_of(live)]

    def candidates(self, turn: Callable[[str], float]) -> list[LiveRequest]:
        """The first of the queues whose turn it is next, and whoever waited longest.

        At most `CANDIDATES_MAX` and one.
        """
        queues = sorted(self._queues, key=lambda queue: (-queue[0], turn(queue[1])))
        if not queues:
            return []
        each = max(QUEUE_CANDIDATES_MIN, CANDIDATES_MAX // len(queues))
        found = [live for queue in queues for live in self._queues[queue][:each]]
        del found[CANDIDATES_MAX:]
        oldest = min((queue[0] for queue in self._queues.values()), key=_number)
        return found if oldest in found else [*found, oldest]


def _queue_of(live: LiveRequest) -> _Queue:
    return live.request.priority, live.tenant


def _number(live: LiveRequest) -> int:
    return live.number
