"""EventFollower: keeps a `BlockPlaces` true to a cache service, whatever breaks in between.

    connect -> watch after the position, or from a snapshot -> apply -> broken: wait, connect anew
                        ^ EVENTS_LOST, a gap: from a snapshot

Invariants: one connection at a time; waits between attempts grow to `BACKOFF_SECONDS_MAX`; a stream
that says nothing for `SILENCE_SECONDS_MAX` is given up, because the service speaks more often.
Event loop only.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc

from kvtier.block_places import BlockPlaces, EventGapError
from kvtier.channels import open_aio_channel
from kvtier.errors import read_error
from kvtier.v1 import events_pb2 as pb
from kvtier.v1 import events_pb2_grpc

__all__ = ["EventFollower"]

log = logging.getLogger(__name__)

BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 5.0
SILENCE_SECONDS_MAX = 15.0

_HOPELESS = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""What asking again will not change."""

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # A connection of its own: gRPC's waits between attempts are longer than ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)


def _nothing() -> None:
    return


class EventFollower:
    """Follows one service. `applied` is called after each message that `places` took."""

    def __init__(
        self,
        address: str,
        places: BlockPlaces,
        credentials: grpc.ChannelCredentials | None = None,
        applied: Callable[[], None] = _nothing,
        silence_seconds: float = SILENCE_SECONDS_MAX,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._places = places
        self._applied = applied
        self._silence_seconds = silence_seconds
        self._backoff = BACKOFF_SECONDS_MIN
        self.current = False
        """True while `places` is whole and the stream is open; else its answers grow old."""

    async def run(self) -> None:
        """Follows until cancelled. Raises grpc.RpcError when the service refuses for good."""
        while True:
            try:
                await self._follow()
            except grpc.RpcError as error:
                self._judge(error)
            except EventGapError as error:
                log.warning("events are missing: %s", error)
                self._places.lost()
            except TimeoutError:
                log.warning("the cache service is silent", extra={"address": self._address})
            finally:
                self.current = False
            await asyncio.sleep(self._backoff)
            self._backoff = min(2 * self._backoff, BACKOFF_SECONDS_MAX)

    async def _follow(self) -> None:
        async with open_aio_channel(self._address, self._credentials, _OPTIONS) as channel:
            stub = events_pb2_grpc.CacheEventsStub(channel)
            call = stub.WatchEvents(self._places.begin())
            try:
                while True:
                    async with asyncio.timeout(self._silence_seconds):
                        message = await call.read()
                    if not isinstance(message, pb.WatchEventsResponse):
                        return  # the end of the stream
                    self._places.apply(message)
                    if self._places.position is not None:
                        self._backoff = BACKOFF_SECONDS_MIN
                        self.current = True
                    self._applied()
            finally:
                call.cancel()

    def _judge(self, error: grpc.RpcError) -> None:
        wire = read_error(error)
        if wire.code in _HOPELESS:
            raise error
        if wire.reason == "EVENTS_LOST":
            self._places.lost()
        log.info(
            "the stream of events broke",
            extra={"address": self._address, "reason": wire.reason or wire.code.name},
        )
