"""A cache service out of its mind: whatever it answers, a page that counts holds its own bytes.

The service here is a real gRPC server with a script; the client is the worker's.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest

from kvtier.blocks import MissReason, Tier
from kvtier.breaker import Breaker
from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc
from tests.page_kinds import ListClient
from worker import cache_link

BLOCK_BYTES = 4096
CHAIN = [BlockHash(bytes([i + 1]) * 32) for i in range(4)]
PAYLOADS = [bytes([i + 1]) * BLOCK_BYTES for i in range(4)]
CHECKSUMS = [payload_checksum(h, payload) for h, payload in zip(CHAIN, PAYLOADS, strict=True)]
HOST = int(Tier.HOST)

Acquired = Iterator[pb.AcquirePrefixResponse]


def match(count: int, **fields: Any) -> pb.AcquirePrefixResponse:
    given = {"matched_count": count, "tiers": bytes([HOST]) * max(count, 0), "lease_id": "lease"}
    return pb.AcquirePrefixResponse(match=pb.PrefixMatch(**{**given, **fields}))


def ready(first: int, checksums: list[int]) -> pb.AcquirePrefixResponse:
    return pb.AcquirePrefixResponse(ready=pb.ReadyRange(first_index=first, checksums=checksums))


def end(count: int) -> pb.AcquirePrefixResponse:
    return pb.AcquirePrefixResponse(end=pb.AcquireEnd(ready_count=count))


def merged(*events: pb.AcquirePrefixResponse) -> pb.AcquirePrefixResponse:
    """One message that says them all."""
    whole = pb.AcquirePrefixResponse()
    for event in events:
        whole.MergeFrom(event)
    return whole


def frames(first: int, count: int, payloads: list[bytes]) -> Iterator[pb.LoadBlocksResponse]:
    for index in range(first, first + count):
        yield pb.LoadBlocksResponse(index=index, offset=0, data=payloads[index])


@dataclass
class Script(cache_pb2_grpc.CacheServiceServicer):
    """Answers as it is told; well by default."""

    terms: Callable[[pb.OpenSessionResponse], None] = lambda opened: None
    events: Callable[[], list[pb.AcquirePrefixResponse]] = field(
        default=lambda: [match(4), ready(0, CHECKSUMS), end(4)]
    )
    whole: Callable[[], pb.AcquirePrefixResponse] = pb.AcquirePrefixResponse
    """The one answer of an acquire; empty: ask for the stream."""
    load: Callable[[int, int], Iterator[pb.LoadBlocksResponse]] = field(
        default=lambda first, count: frames(first, count, PAYLOADS)
    )

    def OpenSession(self, request: Any, context: Any) -> pb.OpenSessionResponse:
        opened = pb.OpenSessionResponse(
            session_id="session", service_instance_id="one", max_blocks_per_call=64
        )
        for name in ("session_ttl", "lease_ttl", "reservation_ttl"):
            getattr(opened, name).FromSeconds(30)
        self.terms(opened)
        return opened

    def AcquireResident(self, request: Any, context: Any) -> pb.AcquireResidentResponse:
        return pb.AcquireResidentResponse.FromString(self.whole().SerializeToString())

    def AcquirePrefix(self, request: Any, context: Any) -> Acquired:
        yield from self.events()

    def LoadBlocks(self, request: Any, context: Any) -> Iterator[pb.LoadBlocksResponse]:
        yield from self.load(request.first_index, request.block_count)

    def ReserveBlocks(self, request: Any, context: Any) -> pb.ReserveBlocksResponse:
        return pb.ReserveBlocksResponse(reservation_id="r", missing_indexes=[3, 1, 99, -1])

    def RenewLeases(self, request: Any, context: Any) -> pb.RenewLeasesResponse:
        return pb.RenewLeasesResponse()

    def ReleaseLease(self, request: Any, context: Any) -> pb.ReleaseLeaseResponse:
        return pb.ReleaseLeaseResponse()

    def AbortReservation(self, request: Any, context: Any) -> pb.AbortReservationResponse:
        return pb.AbortReservationResponse()

    def CloseSession(self, request: Any, context: Any) -> pb.CloseSessionResponse:
        return pb.CloseSessionResponse()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    cache_pb2_grpc.add_CacheServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def connect(address: str) -> Iterator[Callable[..., ListClient]]:
    clients: list[ListClient] = []

    def make(transport: Any = "stream") -> ListClient:
        breaker = Breaker(time.monotonic, wait_seconds=0.05, wait_seconds_max=0.1)
        namespace = NamespaceId(bytes(32))
        client = ListClient(address, namespace, BLOCK_BYTES, 64, "test", transport, breaker=breaker)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def restore(client: ListClient, seconds: float = 2.0) -> tuple[int, MissReason]:
    """How many blocks came, each compared with what it must be."""
    pages = [np.zeros(BLOCK_BYTES, dtype=np.uint8) for _ in CHAIN]
    result = client.restore("r", CHAIN, pages, seconds)
    for page, payload in zip(pages, PAYLOADS[: len(result.tiers)], strict=False):
        assert page.tobytes() == payload
    return len(result.tiers), result.miss_reason


def comes_back(client: ListClient) -> bool:
    """Whether the client finds a service that has come to its senses."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if restore(client)[0] == len(CHAIN):
            return True
        time.sleep(0.02)
    return False


def test_a_service_in_its_right_mind_is_believed(connect: Any) -> None:
    assert restore(connect()) == (4, MissReason.NONE)


@pytest.mark.parametrize(
    "events",
    [
        [merged(match(4), ready(0, CHECKSUMS), end(4))],
        [match(4), merged(ready(0, CHECKSUMS), end(4))],
        [merged(match(4), ready(0, CHECKSUMS[:1])), ready(1, CHECKSUMS[1:]), end(4)],
        [merged(match(4), ready(0, CHECKSUMS[:1])), merged(ready(1, CHECKSUMS[1:]), end(4))],
    ],
    ids=["all in one", "the last two", "the first two", "two and two"],
)
def test_a_message_may_say_several_things(
    script: Script, connect: Any, events: list[pb.AcquirePrefixResponse]
) -> None:
    script.events = lambda: events
    assert restore(connect()) == (4, MissReason.NONE)


@pytest.mark.parametrize(
    ("events", "good"),
    [
        ([], 0),
        ([end(0)], 0),
        ([ready(0, CHECKSUMS)], 0),
        ([match(4)], 0),
        ([match(9)], 0),
        ([match(2, tiers=bytes([HOST]))], 0),
        ([match(2, tiers=bytes([HOST, 77]))], 0),
        ([match(-1)], 0),
        ([match(4), match(4)], 0),
        ([match(4), ready(1, CHECKSUMS[1:])], 0),
        ([match(4), ready(-1, CHECKSUMS)], 0),
        ([match(4), ready(0, [*CHECKSUMS, 5])], 0),
        ([match(2), ready(0, CHECKSUMS[:3])], 0),
        ([match(4), ready(0, CHECKSUMS[:2]), ready(0, CHECKSUMS[:2])], 2),
        ([match(4), ready(0, CHECKSUMS[:2]), ready(3, CHECKSUMS[3:])], 2),
        ([match(4), ready(0, CHECKSUMS[:2]), end(4)], 2),
        ([match(4), ready(0, CHECKSUMS[:2]), end(-3)], 2),
        ([match(4), ready(0, CHECKSUMS[:1]), match(4)], 1),
        ([match(4), ready(0, [CHECKSUMS[0], *CHECKSUMS[2:], CHECKSUMS[1]])], 1),
        ([match(4), ready(0, CHECKSUMS), ready(4, [])], 4),
        ([match(4), pb.AcquirePrefixResponse()], 0),
        ([merged(match(4), end(4))], 0),
        ([merged(ready(0, CHECKSUMS), end(4))], 0),
        ([merged(match(4), ready(1, CHECKSUMS[1:]), end(3))], 0),
        ([merged(match(4), ready(0, CHECKSUMS[:2]), end(3))], 2),
        ([merged(match(4), ready(0, CHECKSUMS[:2])), merged(match(4), end(2))], 2),
    ],
)
def test_events_that_do_not_fit_are_a_shorter_restore(
    script: Script, connect: Any, events: list[pb.AcquirePrefixResponse], good: int
) -> None:
    client = connect()
    script.events = lambda: events
    count, reason = restore(client)
    assert count == good
    assert reason is not MissReason.NONE or events[-1].HasField("end")
    if len(events) == 1:
        script.whole = lambda: events[0]
        assert restore(client)[0] in (0, good)
        script.whole = pb.AcquirePrefixResponse
    script.events = Script().events
    assert comes_back(client)


@pytest.mark.parametrize(
    ("load", "good"),
    [
        (lambda first, count: iter(()), 0),
        (lambda first, count: frames(first, 2, PAYLOADS), 2),
        (lambda first, count: frames(first, count, [p[:-1] for p in PAYLOADS]), 0),
        (lambda first, count: frames(first, count, [p + b"x" for p in PAYLOADS]), 0),
        (lambda first, count: frames(first, count, [b""] * 4), 0),
        (lambda first, count: frames(first, count, PAYLOADS[::-1]), 0),
        (lambda first, count: frames(first, count, [*PAYLOADS[:2], *PAYLOADS[:2]]), 2),
        (lambda first, count: reversed(list(frames(first, count, PAYLOADS))), 0),
        (lambda first, count: frames(first + 1, 3, PAYLOADS), 0),
    ],
    ids=["none", "too few", "short", "long", "empty", "mixed up", "repeated", "backwards", "late"],
)
def test_payloads_that_do_not_fit_are_a_shorter_restore(
    script: Script, connect: Any, load: Any, good: int
) -> None:
    client = connect()
    script.load = load
    assert restore(client)[0] == good
    script.load = Script().load
    assert comes_back(client)


def test_another_block_with_its_own_right_checksum_is_not_believed(
    script: Script, connect: Any
) -> None:
    """The checksum is the name's: bytes that are whole, but not this block's, do not match."""
    swapped = [PAYLOADS[0], PAYLOADS[2], PAYLOADS[1], PAYLOADS[3]]
    sums = [CHECKSUMS[0], CHECKSUMS[2], CHECKSUMS[1], CHECKSUMS[3]]
    script.events = lambda: [match(4), ready(0, sums), end(4)]
    script.load = lambda first, count: frames(first, count, swapped)
    assert restore(connect()) == (1, MissReason.CORRUPT)


def test_events_without_end_are_cut_at_the_callers_time(script: Script, connect: Any) -> None:
    def endless() -> Any:
        yield match(4)
        while True:
            yield ready(0, [])

    client = connect()
    script.events = endless
    started = time.monotonic()
    assert restore(client, 0.3)[0] == 0
    assert time.monotonic() - started < 2


def test_a_reservation_outside_the_chain_stores_nothing(connect: Any) -> None:
    pages = [np.frombuffer(payload, dtype=np.uint8) for payload in PAYLOADS]
    result = connect().store("r", CHAIN, pages)
    assert (result.stored_count, result.refused_count) == (0, 4)


def _long_lived(opened: pb.OpenSessionResponse) -> None:
    for name in ("session_ttl", "lease_ttl", "reservation_ttl"):
        getattr(opened, name).seconds = 300_000_000_000


def _immortal(opened: pb.OpenSessionResponse) -> None:
    opened.lease_ttl.seconds = 2**62


def _dead(opened: pb.OpenSessionResponse) -> None:
    opened.lease_ttl.seconds = -1


def _nowhere(opened: pb.OpenSessionResponse) -> None:
    opened.arena.socket_path = "/no\0where"
    opened.arena.arena_bytes = 2**62


def _nameless(opened: pb.OpenSessionResponse) -> None:
    opened.session_id = ""


@pytest.mark.parametrize("transport", ["stream", "auto", "shared_memory"])
@pytest.mark.parametrize("terms", [_long_lived, _immortal, _dead, _nowhere, _nameless])
def test_terms_that_make_no_sense_neither_raise_nor_end_the_search_for_better_ones(
    script: Script, connect: Any, terms: Any, transport: str
) -> None:
    script.terms = terms
    client = connect(transport)
    assert restore(client)[0] in (0, 4)
    time.sleep(0.1)
    assert restore(client)[0] in (0, 4)
    script.terms = Script().terms
    if transport != "shared_memory":
        assert comes_back(client)
    else:
        assert restore(client)[0] == 0


class Moody(grpc.ServerInterceptor):
    """In front of a script: while `mood` is set, every call ends by it, without a message."""

    def __init__(self) -> None:
        self.mood: Callable[[grpc.ServicerContext], None] | None = None

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if (mood := self.mood) is None:
            return continuation(handler_call_details)

        def answer(messages: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            mood(context)
            yield from ()

        return grpc.stream_stream_rpc_method_handler(answer)


def says_ok(context: grpc.ServicerContext) -> None:
    """OK, where a message is owed."""


def says_garbage(context: grpc.ServicerContext) -> None:
    context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
    context.set_code(grpc.StatusCode.INTERNAL)


@pytest.fixture
def moody(script: Script) -> Iterator[tuple[Moody, str]]:
    """And the address where it answers, or else the script."""
    moody = Moody()
    server = grpc.server(ThreadPoolExecutor(8), interceptors=(moody,))
    cache_pb2_grpc.add_CacheServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield moody, f"127.0.0.1:{port}"
    server.stop(0).wait()


MOODS = pytest.mark.parametrize("mood", [says_ok, says_garbage])


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@MOODS
def test_a_status_alone_is_nonsense_and_the_keeper_goes_on_asking(
    moody: tuple[Moody, str], mood: Any
) -> None:
    breaker = Breaker(time.monotonic, wait_seconds=0.05, wait_seconds_max=0.1)
    namespace = NamespaceId(bytes(32))
    client = ListClient(moody[1], namespace, BLOCK_BYTES, 64, "test", "stream", breaker=breaker)
    try:
        assert restore(client) == (4, MissReason.NONE)
        moody[0].mood = mood
        until = time.monotonic() + 10
        while client.counts().get("probe_failures", 0) < 3 and time.monotonic() < until:
            assert restore(client) == (0, MissReason.UNAVAILABLE)
            time.sleep(0.02)
        assert client.counts()["probe_failures"] >= 3
        moody[0].mood = None
        assert comes_back(client)
    finally:
        client.close()


@MOODS
def test_a_store_that_is_answered_by_a_status_alone_is_refused(
    moody: tuple[Moody, str], mood: Any
) -> None:
    breaker = Breaker(time.monotonic, wait_seconds=0.05, wait_seconds_max=0.1)
    namespace = NamespaceId(bytes(32))
    client = ListClient(moody[1], namespace, BLOCK_BYTES, 64, "test", "stream", breaker=breaker)
    pages = [np.frombuffer(payload, dtype=np.uint8) for payload in PAYLOADS]
    try:
        assert restore(client) == (4, MissReason.NONE)
        moody[0].mood = mood
        assert client.store("s", CHAIN, pages).refused_count == len(CHAIN)
    finally:
        client.close()


def test_the_keeper_outlives_what_nobody_thought_of(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(cache_link, "open_session", breaks)
        client = connect()
        until = time.monotonic() + 10
        while client.counts().get("cache_failures", 0) < 5 and time.monotonic() < until:
            time.sleep(0.02)
        assert client.counts()["cache_failures"] >= 5
    assert comes_back(client)
