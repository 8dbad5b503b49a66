"""The calls of `kvtier.v1.CacheEvents`: watch what the tiers gain and lose."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from cache_service.edge.calls import Context
from cache_service.events.runs import BlockRun, EventRun
from cache_service.events.watching import Position, WatchView
from kvtier.serving import MalformedRequestError, ShuttingDownError
from kvtier.v1 import events_pb2 as pb
from kvtier.v1 import events_pb2_grpc

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["EVENTS_NAME", "EventsServicer", "watch_message"]

EVENTS_NAME = "kvtier.v1.CacheEvents"


class EventsServicer(events_pb2_grpc.CacheEventsServicer):
    """Serves the events of a cache."""

    def __init__(self, cache: "Cache") -> None:
        self._cache = cache

    def before_drain(self) -> None:
        """Ends the watches, which would otherwise run on until they are cut."""
        self._cache.watching.end()

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        watching = self._cache.watching
        async with aclosing(watching.watch(_after(request), request.snapshot)) as views:
            async for view in views:
                # Written here and not yielded: a write that takes too long can be given up.
                try:
                    async with asyncio.timeout(watching.stall_seconds):
                        await context.write(watch_message(view))
                except TimeoutError:
                    raise watching.stalled() from None
        raise ShuttingDownError("the cache service is shutting down; watch it after its start")
        yield pb.WatchEventsResponse()


def _after(request: pb.WatchEventsRequest) -> Position | None:
    if not request.HasField("after"):
        return None
    if request.snapshot:
        raise MalformedRequestError(
            "a watch begins after a position or with a snapshot, not with both", field="snapshot"
        )
    return Position(request.after.instance_id, request.after.sequence)


def watch_message(view: WatchView) -> pb.WatchEventsResponse:
    """The view as it travels."""
    position = view.position
    message = pb.WatchEventsResponse(
        position=pb.EventPosition(instance_id=position.instance_id, sequence=position.sequence),
        events=[_events(run) for run in view.events],
        blocks=[_blocks(run) for run in view.blocks],
    )
    if view.snapshot_done:
        message.snapshot = pb.SNAPSHOT_STATE_DONE
    elif view.snapshot_under_way:
        message.snapshot = pb.SNAPSHOT_STATE_UNDER_WAY
    return message


def _events(run: EventRun) -> pb.EventRun:
    return pb.EventRun(
        kind=int(run.kind),  # type: ignore[arg-type]
        tier=int(run.tier),  # type: ignore[arg-type]
        reason=int(run.reason),  # type: ignore[arg-type]
        namespace_id=run.namespace_id,
        block_bytes=run.block_bytes,
        block_hashes=run.hashes,
        parent_hashes=run.parents,
    )


def _blocks(run: BlockRun) -> pb.SnapshotRun:
    return pb.SnapshotRun(
        tiers=[int(tier) for tier in run.tiers],  # type: ignore[misc]
        namespace_id=run.namespace_id,
        block_bytes=run.block_bytes,
        block_hashes=run.hashes,
        parent_hashes=run.parents,
    )
