"""What a client holds ends with it: by deadline, by a broken stream, by a closed connection."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cache_service.intake import StreamIntake
from cache_service.roles import RULES
from cache_service.servicer import SERVICE_NAME, CacheServicer
from cache_service.status import STATUS_TABLE
from cache_service.views import MatchView
from kvtier.access import Access, Rule
from kvtier.blocks import MissReason
from kvtier.serving import GrpcServer
from kvtier.tls import SecuritySettings
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def hasty(make_service: Any) -> Any:
    """A service whose leases, reservations and sessions end quickly."""
    return make_service(
        limits={
            "lease_ttl_seconds": 0.2,
            "reservation_ttl_seconds": 0.2,
            "reservation_grace_seconds": 0.2,
            "session_ttl_seconds": 2.0,
        }
    )


@pytest.mark.parametrize("transport", ["shared_memory", "bulk", "stream"])
def test_a_commit_of_an_expired_reservation_is_refused(
    hasty: Any, open_peer: Any, tools: Any, transport: str
) -> None:
    peer = open_peer(hasty, transport)
    chain = tools.fresh_chain(1)
    reserved = peer.reserve(chain)
    checksums = peer.write(reserved, chain)
    hasty.until(lambda stats: stats.reservation_count == 0)
    error = tools.refusal(lambda: peer.commit(reserved, checksums))
    assert (error.code, error.reason) == (CODE.FAILED_PRECONDITION, "RESERVATION_EXPIRED")
    assert peer.lookup(chain).present_count == 0
    assert list(peer.reserve(chain).missing_indexes) == [0]


def test_an_expired_reservation_that_is_also_incomplete_says_expired(
    hasty: Any, open_peer: Any, tools: Any
) -> None:
    peer = open_peer(hasty, "stream")
    reserved = peer.reserve(tools.fresh_chain(1))
    hasty.until(lambda stats: stats.reservation_count == 0)
    assert tools.refusal(lambda: peer.commit(reserved, [1])).reason == "RESERVATION_EXPIRED"


def test_an_expired_lease_loads_nothing(hasty: Any, open_peer: Any, tools: Any) -> None:
    peer = open_peer(hasty, "stream")
    chain = tools.fresh_chain(1)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    hasty.until(lambda stats: stats.lease_count == 0)
    error = tools.refusal(lambda: peer.load(lease_id, 0, 1))
    assert (error.code, error.reason) == (CODE.FAILED_PRECONDITION, "LEASE_EXPIRED")


def test_a_session_that_nobody_names_ends(hasty: Any, open_peer: Any, tools: Any) -> None:
    peer = open_peer(hasty, "stream")
    hasty.until(lambda stats: stats.session_count == 0)
    error = tools.refusal(lambda: peer.lookup(tools.fresh_chain(1)))
    assert error.reason == "SESSION_UNKNOWN"


def test_a_client_process_that_vanishes_frees_what_it_held(
    service: Any, open_peer: Any, tools: Any
) -> None:
    """The connection of the arena socket closes when a process dies, however it dies."""
    before = service.stats()
    peer = open_peer(service, "shared_memory")
    chain = tools.fresh_chain(1)
    peer.store(chain)
    peer.acquire(chain)
    peer.reserve(tools.fresh_chain(2))
    assert service.stats().lease_count == before.lease_count + 1
    peer.connection.close()
    after = service.until(lambda stats: stats.session_count == before.session_count)
    assert after.lease_count == before.lease_count
    assert after.reservation_count == before.reservation_count


class StuckCache:
    """Matches, then never gets any further; notes when its stream was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def give_back(self, *_: object) -> None:
        """Nothing is held here."""

    async def acquire(self, *_: object) -> AsyncIterator[MatchView]:
        try:
            yield MatchView("lease", 30.0, 1, b"\x03", MissReason.NONE)
            await asyncio.Event().wait()
        finally:
            self.closed.set()


DEVELOPMENT = SecuritySettings(development=True)
UNAUDITED = {method: Rule(rule.roles) for method, rule in RULES.items()}


def test_a_stream_that_breaks_before_its_end_is_closed_in_the_core() -> None:
    """Closing it is what releases the lease; the core's own tests hold it to that."""
    cache, ready, addresses = StuckCache(), threading.Event(), []

    async def run() -> None:
        server = GrpcServer(STATUS_TABLE, Access(UNAUDITED, DEVELOPMENT))
        servicer = CacheServicer(cast(Any, cache), StreamIntake(), "/nowhere")
        cache_pb2_grpc.add_CacheServiceServicer_to_server(servicer, server.server)
        addresses.extend(await server.start(["127.0.0.1:0"], [SERVICE_NAME]))
        ready.set()
        await asyncio.to_thread(cache.closed.wait, 20)
        await server.drain(1)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(20)
    with grpc.insecure_channel(addresses[0]) as channel:
        call = cache_pb2_grpc.CacheServiceStub(channel).AcquirePrefix(
            pb.AcquirePrefixRequest(block_hashes=bytes(32)), timeout=30
        )
        assert next(call).match.lease_id == "lease"
        assert not cache.closed.is_set()
        call.cancel()
        assert cache.closed.wait(10)
    thread.join(20)


def test_health_says_serving_for_the_service_and_the_whole(service: Any) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    for name in ("", "kvtier.v1.CacheService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_names_the_service(service: Any) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=5)))
    names = {each.name for each in answer.list_services_response.service}
    assert "kvtier.v1.CacheService" in names


def test_two_sessions_may_use_the_service_at_once(service: Any, open_peer: Any, tools: Any) -> None:
    chains = [tools.fresh_chain(3) for _ in range(6)]
    peers = [open_peer(service, t) for t in ("shared_memory", "bulk", "stream") * 2]
    problems: list[BaseException] = []

    def work(peer: Any, chain: Any) -> None:
        try:
            peer.store(chain)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(peers, chains, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert problems == []
    for chain in chains:
        events = peers[0].acquire(chain)
        assert peers[0].read(events) == [p.tobytes() for p in tools.filled_pages(chain)]
        peers[0].release(events[0].match.lease_id)
