"""What all calls of the cache service share: the core, the stream intake, the wall clock.

Invariant: nothing of `kvtier.v1` goes further in than `edge/` and `wire.py`, nothing of the core's
further out. Errors are raised as they are; `cache_service/status.py` gives them their codes. Every
handler runs on the event loop, and none holds it for longer than copying one frame.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from cache_service import wire
from cache_service.intake import StreamIntake

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["FRAME_BYTES", "Calls", "Context"]

FRAME_BYTES = 1024 * 1024

Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing that is used here


class Calls:
    """Some of a servicer's calls to `cache`. No state of its own. `wall_clock`: Unix seconds."""

    def __init__(
        self,
        cache: "Cache",
        intake: StreamIntake,
        arena_socket_path: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._intake = intake
        self._arena_socket_path = arena_socket_path
        self._wall_clock = wall_clock
        self._start_seconds = wall_clock()

    def _time_in(self, seconds: float) -> Timestamp:
        return wire.timestamp(self._wall_clock() + seconds)
