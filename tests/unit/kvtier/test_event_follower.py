"""A router's index, and its follower against services that misbehave."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from kvtier.block_places import BlockPlaces
from kvtier.blocks import Tier
from kvtier.event_follower import EventFollower
from kvtier.v1 import block_pb2, events_pb2_grpc
from kvtier.v1 import events_pb2 as pb

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))

Script = Callable[[int, pb.WatchEventsRequest], AsyncIterator[pb.WatchEventsResponse]]


def message(
    sequence: int, *runs: pb.EventRun, instance_id: str = "one", **fields: Any
) -> pb.WatchEventsResponse:
    position = pb.EventPosition(instance_id=instance_id, sequence=sequence)
    return pb.WatchEventsResponse(position=position, events=runs, **fields)


def run(kind: pb.EventKind, tier: block_pb2.Tier, *hashes: bytes) -> pb.EventRun:
    return pb.EventRun(kind=kind, tier=tier, block_hashes=b"".join(hashes))


def whole(sequence: int, *hashes: bytes, instance_id: str = "one") -> pb.WatchEventsResponse:
    blocks = pb.SnapshotRun(tiers=[block_pb2.TIER_SSD], block_hashes=b"".join(hashes))
    return message(
        sequence, instance_id=instance_id, blocks=[blocks], snapshot=pb.SNAPSHOT_STATE_DONE
    )


def test_copies_come_and_go_by_tier() -> None:
    places = BlockPlaces()
    assert places.begin() == pb.WatchEventsRequest(snapshot=True)
    assert places.position is None
    places.apply(whole(7, A, B))
    places.apply(message(8, run(pb.EVENT_KIND_PROMOTED, block_pb2.TIER_HOST, A)))
    places.apply(message(9, run(pb.EVENT_KIND_STORED, block_pb2.TIER_HOST, C)))
    assert places.tiers(A) == (Tier.HOST, Tier.SSD)
    assert places.prefix([A, B, C]) == (Tier.HOST, Tier.SSD, Tier.HOST)
    places.apply(message(11, run(pb.EVENT_KIND_EVICTED, block_pb2.TIER_SSD, B, A)))
    assert places.prefix([A, B, C]) == (Tier.HOST,)
    assert (places.tiers(A), places.tiers(B)) == ((Tier.HOST,), ())
    assert sorted(places) == [A, C]
    assert len(places) == 2
    assert places.begin().after == pb.EventPosition(instance_id="one", sequence=11)


def test_the_last_whole_index_answers_until_the_next_one_is_whole() -> None:
    places = BlockPlaces()
    places.begin()
    places.apply(whole(7, A))
    places.lost()
    assert places.begin().snapshot
    under_way = pb.SNAPSHOT_STATE_UNDER_WAY
    blocks = [pb.SnapshotRun(tiers=[block_pb2.TIER_HOST], block_hashes=B)]
    places.apply(message(2, instance_id="two", blocks=blocks, snapshot=under_way))
    assert (places.tiers(A), places.tiers(B)) == ((Tier.SSD,), ())
    # The connection breaks: what the half snapshot told is forgotten.
    assert places.begin().snapshot
    places.apply(whole(3, C, instance_id="two"))
    assert sorted(places) == [C]


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    """`await serve(script)`: a server whose watches do as the script says; its address."""
    servers: list[grpc.aio.Server] = []

    async def served(script: Script | None) -> str:
        class Scripted(events_pb2_grpc.CacheEventsServicer):
            calls = 0

            async def WatchEvents(
                self, request: pb.WatchEventsRequest, context: Any
            ) -> AsyncIterator[pb.WatchEventsResponse]:
                assert script is not None
                Scripted.calls += 1
                async for each in script(Scripted.calls, request):
                    yield each

        server = grpc.aio.server()
        if script is not None:
            events_pb2_grpc.add_CacheEventsServicer_to_server(Scripted(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield served
    for server in servers:
        await server.stop(None)


async def followed(address: str, holds: Callable[[BlockPlaces], bool], **options: Any) -> None:
    """Returns when the index holds what it shall."""
    places, told = BlockPlaces(), asyncio.Event()
    follower = EventFollower(address, places, applied=told.set, **options)
    following = asyncio.create_task(follower.run())
    async with asyncio.timeout(30):
        while not holds(places):
            await told.wait()
            told.clear()
    assert follower.current
    following.cancel()
    await asyncio.wait([following])


async def test_a_silent_service_is_given_up_and_followed_on(serve: Any) -> None:
    async def script(
        call: int, request: pb.WatchEventsRequest
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        if call == 1:
            assert request.snapshot
            yield whole(7, A)
            await asyncio.Event().wait()
        assert request.after.sequence == 7
        yield message(8, run(pb.EVENT_KIND_STORED, block_pb2.TIER_HOST, B))
        await asyncio.Event().wait()

    address = await serve(script)
    await followed(address, lambda places: B in list(places), silence_seconds=0.2)


async def test_a_gap_or_a_lost_place_leads_to_a_snapshot(serve: Any) -> None:
    async def script(
        call: int, request: pb.WatchEventsRequest
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        assert request.snapshot
        yield whole(call, A) if call == 1 else whole(call, C)
        if call == 1:
            yield message(9, run(pb.EVENT_KIND_STORED, block_pb2.TIER_HOST, B))
        await asyncio.Event().wait()

    await followed(await serve(script), lambda places: list(places) == [C])


async def test_what_the_service_refuses_for_good_is_raised(serve: Any) -> None:
    follower = EventFollower(await serve(None), BlockPlaces())
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.wait_for(follower.run(), 30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not follower.current
