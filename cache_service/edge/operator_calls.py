"""Calls for whoever runs the service: statistics, verify."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from cache_service import wire
from cache_service.edge.calls import Calls, Context
from cache_service.owner_tables import owners_message
from cache_service.stats_message import pass_message, stats_message
from kvtier.v1 import cache_pb2 as pb

__all__ = ["OperatorCalls"]

OWNERS_MAX = 10_000
"""Listed in one answer: 1 MB of it."""


class OperatorCalls(Calls):
    """What the service says about itself, and what it is told to check."""

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.GetStatsResponse:
        message = stats_message(self._cache.stats(), self._start_seconds)
        if request.owners_max:
            count = wire.count("owners_max", request.owners_max, OWNERS_MAX)
            message.owners.CopyFrom(owners_message(self._cache.owners(count), message.tiers))
        return message

    async def VerifyBlocks(
        self, request: pb.VerifyBlocksRequest, context: Context
    ) -> AsyncIterator[pb.VerifyBlocksResponse]:
        budget = wire.bytes_per_second(request.bytes_per_second)
        async with aclosing(self._cache.verify(budget)) as views:
            async for view in views:
                yield pb.VerifyBlocksResponse(progress=pass_message(view), done=view.done)
