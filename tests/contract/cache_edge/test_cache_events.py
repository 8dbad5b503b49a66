"""The stream of events over real gRPC: resume, snapshot, loss, limits, slow watchers, shutdown."""

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from cache_service.commands import app
from kvtier.block_places import BlockPlaces, EventGapError
from kvtier.blocks import Tier
from kvtier.errors import WireError, read_error
from kvtier.event_follower import EventFollower
from kvtier.keys import pack_hashes
from kvtier.v1 import block_pb2, events_pb2_grpc
from kvtier.v1 import events_pb2 as pb

SMALL = {"host": {"capacity_bytes": "64MiB"}, "ssd": {"enabled": False}}
SECONDS_MAX = 30


@contextmanager
def watching(service: Any, **request: Any) -> Iterator[Any]:
    """An open watch; its messages."""
    stub = events_pb2_grpc.CacheEventsStub(service.channel)
    call = stub.WatchEvents(pb.WatchEventsRequest(**request), timeout=SECONDS_MAX)
    yield call
    call.cancel()


def refused(call: Any) -> WireError:
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call:
            pass
    return read_error(caught.value)


def place_is_free(service: Any) -> bool:
    """Whether another watch is let in."""
    with watching(service) as call:
        try:
            next(call)
        except grpc.RpcError as error:
            refusal = read_error(error)
        else:
            return True
    assert refusal.reason == "TOO_MANY_WATCHERS"
    return False


def until(call: Any, places: BlockPlaces, holds: Callable[[], bool]) -> pb.EventPosition:
    """Reads messages until `holds`."""
    for message in call:
        places.apply(message)
        if holds():
            return message.position
    raise AssertionError("the stream ended")


def block_request(places: BlockPlaces) -> dict[str, Any]:
    request = places.begin()
    if request.HasField("after"):
        return {"after": request.after}
    return {"snapshot": True}


def test_a_store_is_told_and_follows_to_the_ssd(
    service: Any, open_peer: Callable[..., Any], tools: Any
) -> None:
    peer, chain = open_peer(service, "stream"), tools.fresh_chain(3)
    with watching(service) as call:
        first = next(call)
        assert first.position.instance_id == service.stats().service_instance_id
        assert not first.events
        assert not first.blocks
        assert first.snapshot == pb.SNAPSHOT_STATE_UNSPECIFIED
        peer.store(chain)
        runs: list[pb.EventRun] = []
        while sum(len(run.block_hashes) // 32 for run in runs) < 6:
            message = next(call)
            runs += message.events
        assert message.position.sequence == first.position.sequence + 6
    stored = runs[0]
    assert (stored.kind, stored.tier) == (pb.EVENT_KIND_STORED, block_pb2.TIER_HOST)
    assert stored.block_hashes == pack_hashes(chain)
    assert stored.parent_hashes == bytes(32) + pack_hashes(chain[:-1])
    assert stored.namespace_id == bytes(range(32))
    assert stored.block_bytes == tools.block_bytes
    assert {(run.kind, run.tier) for run in runs[1:]} == {
        (pb.EVENT_KIND_DEMOTED, block_pb2.TIER_SSD)
    }


def test_a_watch_goes_on_after_its_last_position_without_loss_or_repetition(
    make_service: Callable[..., Any], open_peer: Callable[..., Any], tools: Any
) -> None:
    service = make_service(**SMALL)
    peer, places = open_peer(service, "shared_memory"), BlockPlaces()
    chains = [tools.fresh_chain(2) for _ in range(3)]
    for number, chain in enumerate(chains):
        with watching(service, **block_request(places)) as call:
            peer.store(chain)
            until(call, places, lambda n=number: len(places) == 2 * n + 2)
    assert all(places.tiers(each) == (Tier.HOST,) for chain in chains for each in chain)
    assert places.prefix([*chains[0], *chains[1]]) == (Tier.HOST,) * 4
    with watching(service, snapshot=True) as call:
        again = BlockPlaces()
        again.begin()
        until(call, again, lambda: again.position is not None)
    assert {each: again.tiers(each) for each in again} == {
        each: places.tiers(each) for each in places
    }
    service.stop()


def test_a_position_that_is_gone_or_of_another_start_is_lost(
    make_service: Callable[..., Any], open_peer: Callable[..., Any], tools: Any
) -> None:
    service = make_service(**SMALL, events={"retained": 3})
    chain = tools.fresh_chain(5)
    open_peer(service, "shared_memory").store(chain)
    with watching(service) as call:
        now = next(call).position
    assert now.sequence == 5
    for position in (
        pb.EventPosition(instance_id=now.instance_id, sequence=1),
        pb.EventPosition(instance_id=now.instance_id, sequence=6),
        pb.EventPosition(instance_id="of another start", sequence=5),
        pb.EventPosition(),
    ):
        with watching(service, after=position) as call:
            error = refused(call)
        assert (error.reason, error.code) == ("EVENTS_LOST", grpc.StatusCode.OUT_OF_RANGE)
        assert error.metadata["instance_id"] == now.instance_id
    with watching(service, after=pb.EventPosition(instance_id=now.instance_id, sequence=2)) as call:
        hashes = b""
        while len(hashes) < 3 * 32:
            hashes += b"".join(run.block_hashes for run in next(call).events)
        assert hashes == pack_hashes(chain[2:])
    with watching(service, after=now, snapshot=True) as call:
        assert refused(call).reason == "MALFORMED_REQUEST"
    service.stop()


def test_watchers_are_bounded_and_a_place_is_free_when_its_watcher_goes(
    make_service: Callable[..., Any],
) -> None:
    service = make_service(**SMALL, events={"watchers_max": 1})
    with watching(service) as call:
        next(call)
        with watching(service) as second:
            error = refused(second)
        assert (error.reason, error.code) == (
            "TOO_MANY_WATCHERS",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
    for _ in range(500):
        if place_is_free(service):
            break
        threading.Event().wait(0.01)
    else:
        raise AssertionError("the place never got free")
    service.stop()


def test_a_stopping_service_ends_its_watches_at_once(make_service: Callable[..., Any]) -> None:
    service = make_service(**SMALL, drain_seconds=600)
    with watching(service) as call:
        next(call)
        service.end()
        error = refused(call)
    assert (error.reason, error.code) == ("SHUTTING_DOWN", grpc.StatusCode.UNAVAILABLE)
    service.stop()


def test_a_watcher_that_does_not_read_is_cut_off_and_its_place_is_free(
    make_service: Callable[..., Any], open_peer: Callable[..., Any], tools: Any
) -> None:
    service = make_service(
        **SMALL, events={"watchers_max": 1, "retained": 200_000, "stall_seconds": 0.3}
    )
    peer = open_peer(service, "stream", block_bytes=64)
    pages = tools.empty_pages(2000, 64)
    # A window that does not grow: soon the service cannot send.
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
    channel = grpc.insecure_channel(service.address, options=options)
    stub = events_pb2_grpc.CacheEventsStub(channel)
    call = stub.WatchEvents(pb.WatchEventsRequest(), timeout=SECONDS_MAX)
    next(call)
    for _ in range(100):
        chain = tools.fresh_chain(2000)
        reserved = peer.reserve(chain)
        peer.commit(reserved, peer.write(reserved, chain, pages))
        if place_is_free(service):
            break
    else:
        raise AssertionError("the watcher still has its place")
    error = refused(call)
    assert (error.reason, error.code) == ("WATCHER_STALLED", grpc.StatusCode.DEADLINE_EXCEEDED)
    assert service.stats().counters["watchers_cut_stalled"] == 1
    channel.close()


def test_messages_that_do_not_continue_each_other_are_noticed() -> None:
    places = BlockPlaces()
    places.begin()
    position = pb.EventPosition(instance_id="one", sequence=4)
    places.apply(pb.WatchEventsResponse(position=position, snapshot=pb.SNAPSHOT_STATE_DONE))
    places.begin()
    run = pb.EventRun(kind=pb.EVENT_KIND_STORED, tier=block_pb2.TIER_HOST, block_hashes=bytes(32))
    for instance_id, sequence in (("one", 6), ("two", 5), ("one", 4)):
        later = pb.EventPosition(instance_id=instance_id, sequence=sequence)
        with pytest.raises(EventGapError):
            places.apply(pb.WatchEventsResponse(position=later, events=[run]))
    places.apply(
        pb.WatchEventsResponse(
            position=pb.EventPosition(instance_id="one", sequence=5), events=[run]
        )
    )
    assert places.tiers(bytes(32)) == (Tier.HOST,)


class Followed:
    """A follower on a loop of its own thread."""

    def __init__(self, address: str) -> None:
        self.places = BlockPlaces()
        self.applied = threading.Condition()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(address)))
        self._thread.start()
        assert self._started.wait(10)

    async def _run(self, address: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.follower = EventFollower(address, self.places, applied=self._told)
        self._task = asyncio.ensure_future(self.follower.run())
        self._started.set()
        await asyncio.wait([self._task])

    def _told(self) -> None:
        with self.applied:
            self.applied.notify_all()

    def until(self, holds: Callable[[], bool]) -> None:
        with self.applied:
            assert self.applied.wait_for(holds, SECONDS_MAX)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_a_router_knows_what_the_service_has_over_its_restart(
    make_service: Callable[..., Any],
    open_peer: Callable[..., Any],
    tools: Any,
    short_directory: Callable[[], Path],
) -> None:
    directory = short_directory()
    changes = {"unix_socket": directory / "c.sock"}
    service = make_service(directory, **changes)
    router = Followed(f"unix:{directory / 'c.sock'}")
    try:
        peer, chain = open_peer(service, "shared_memory"), tools.fresh_chain(4)
        router.until(lambda: router.follower.current)
        peer.store(chain)
        router.until(lambda: router.places.prefix(chain) == (Tier.HOST,) * 4)
        first = router.places.position
        assert first is not None
        service.stop()
        again = make_service(directory, **changes)
        router.until(lambda: router.places.prefix(chain) == (Tier.SSD,) * 4)
        second = router.places.position
        assert second is not None
        assert second.instance_id == again.stats().service_instance_id != first.instance_id
        again.stop()
    finally:
        router.stop()


def test_bytes_that_are_no_request_are_refused_or_are_one(make_service: Callable[..., Any]) -> None:
    service, rng = make_service(**SMALL), random.Random(4)
    watch = service.channel.unary_stream("/kvtier.v1.CacheEvents/WatchEvents")
    reasons = set()
    for size in [*range(40), 500, 5000]:
        call = watch(rng.randbytes(size), timeout=SECONDS_MAX)
        try:
            assert pb.WatchEventsResponse.FromString(next(call)).position.instance_id
        except grpc.RpcError as error:
            reasons.add(read_error(error).reason)
        call.cancel()
    assert reasons <= {"MALFORMED_REQUEST", "EVENTS_LOST", "TOO_MANY_WATCHERS"}
    service.stop()


def printed(service: Any, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["events", "--address", service.address, *arguments])


def test_the_command_prints_what_is_cached_and_then_what_happened_since(
    make_service: Callable[..., Any], open_peer: Callable[..., Any], tools: Any
) -> None:
    service = make_service(**SMALL)
    peer, chain = open_peer(service, "shared_memory"), tools.fresh_chain(3)
    peer.store(chain[:2])
    first = printed(service, "--snapshot", "--no-follow", "--json")
    assert first.exit_code == 0
    *cached, position = [json.loads(line) for line in first.stdout.splitlines()]
    assert [each["block_hash"] for each in cached] == [each.hex() for each in chain[:2]]
    assert [each["parent_hash"] for each in cached] == [None, chain[0].hex()]
    assert {(each["kind"], *each["tiers"]) for each in cached} == {("cached", "host")}
    place = f"{position['instance_id']}:{position['sequence']}"
    assert first.stderr == f"go on with --after {place}\n"
    peer.store(chain[2:])
    later = printed(service, "--after", place, "--no-follow", "--json")
    event, position = [json.loads(line) for line in later.stdout.splitlines()]
    assert event == {
        "sequence": 3,
        "kind": "stored",
        "tier": "host",
        "reason": None,
        "block_hash": chain[2].hex(),
        "parent_hash": None,
        "namespace_id": bytes(range(32)).hex(),
        "block_bytes": tools.block_bytes,
    }
    assert position["sequence"] == 3
    header, *rows = printed(service, "--snapshot", "--no-follow").stdout.splitlines()
    assert header.split() == ["event", "what", "tier", "why", "block", "after", "namespace", "size"]
    assert [row.split()[:3] for row in rows] == [
        ["cached", "host", each.hex()[:16]] for each in chain
    ]
    lost = printed(service, "--after", "somebody:1")
    assert (lost.exit_code, "EVENTS_LOST" in lost.stderr) == (1, True)
    assert printed(service, "--after", "1").exit_code == 2
    assert printed(service, "--after", place, "--snapshot").exit_code == 2
    service.stop()
