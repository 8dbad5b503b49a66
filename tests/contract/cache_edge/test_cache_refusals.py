"""Bad input gets a typed error with its reason, and loses nothing."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from kvtier.v1 import cache_pb2 as pb

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"key_scheme_version": 99}, CODE.FAILED_PRECONDITION, "KEY_SCHEME_MISMATCH"),
        ({"key_scheme_version": 0}, CODE.FAILED_PRECONDITION, "KEY_SCHEME_MISMATCH"),
        ({"namespace_id": b"short"}, CODE.INVALID_ARGUMENT, "INVALID_NAMESPACE"),
        ({"block_bytes": 0}, CODE.INVALID_ARGUMENT, "INVALID_BLOCK_SIZE"),
        ({"block_bytes": -5}, CODE.INVALID_ARGUMENT, "INVALID_BLOCK_SIZE"),
        ({"block_tokens": -1}, CODE.INVALID_ARGUMENT, "INVALID_BLOCK_SIZE"),
        (
            {"block_bytes": 2**62, "namespace_id": bytes(32)},
            CODE.INVALID_ARGUMENT,
            "BLOCK_TOO_LARGE",
        ),
        ({"transport": 0}, CODE.INVALID_ARGUMENT, "INVALID_TRANSPORT"),
        ({"transport": 77}, CODE.INVALID_ARGUMENT, "INVALID_TRANSPORT"),
        ({"client_name": "x" * 300}, CODE.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    ],
)
def test_a_session_on_impossible_terms_is_refused(
    service: Any, tools: Any, changes: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    before = service.stats().session_count
    request = tools.open_request("stream", **changes)
    error = tools.refusal(lambda: service.stub.OpenSession(request, timeout=5))
    assert (error.code, error.reason) == (code, reason)
    assert error.message
    assert service.stats().session_count == before


def test_sessions_of_one_namespace_agree_on_the_block_size(peer: Any, tools: Any) -> None:
    request = tools.open_request("stream", block_bytes=4096)
    error = tools.refusal(lambda: peer.service.stub.OpenSession(request, timeout=5))
    assert (error.code, error.reason) == (CODE.INVALID_ARGUMENT, "INVALID_BLOCK_SIZE")


def _calls_with_hashes(stub: Any, session_id: str) -> list[Callable[[bytes], Any]]:
    return [
        lambda hashes: stub.LookupPrefix(
            pb.LookupPrefixRequest(session_id=session_id, block_hashes=hashes), timeout=5
        ),
        lambda hashes: list(
            stub.AcquirePrefix(
                pb.AcquirePrefixRequest(session_id=session_id, block_hashes=hashes), timeout=5
            )
        ),
        lambda hashes: stub.ReserveBlocks(
            pb.ReserveBlocksRequest(session_id=session_id, block_hashes=hashes), timeout=5
        ),
    ]


@pytest.mark.parametrize("packed", [b"x" * 31, b"x" * 33, b"", b"y" * 64])
def test_hashes_that_are_none_are_malformed(peer: Any, tools: Any, packed: bytes) -> None:
    """Not whole, none at all, or one twice."""
    for call in _calls_with_hashes(peer.service.stub, peer.id):
        error = tools.refusal(lambda call=call: call(packed))
        assert (error.code, error.reason) == (CODE.INVALID_ARGUMENT, "MALFORMED_HASHES")


def test_a_release_with_malformed_hashes_keeps_the_lease(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    error = tools.refusal(lambda: peer.release(lease_id, corrupt=b"odd"))
    assert error.reason == "MALFORMED_HASHES"
    assert len(peer.load(lease_id, 0, 1)) > 0


def test_more_hashes_than_a_call_may_carry_are_refused(peer: Any, tools: Any) -> None:
    limit = peer.opened.max_blocks_per_call
    assert limit == 32_768
    packed = b"".join(i.to_bytes(32, "big") for i in range(limit + 1))
    for call in _calls_with_hashes(peer.service.stub, peer.id):
        error = tools.refusal(lambda call=call: call(packed))
        assert (error.code, error.reason) == (CODE.INVALID_ARGUMENT, "TOO_MANY_BLOCKS")


@pytest.mark.parametrize("timeout", [Duration(seconds=-1), Duration(seconds=10**15)])
def test_an_absurd_load_timeout_is_malformed(peer: Any, tools: Any, timeout: Duration) -> None:
    error = tools.refusal(lambda: peer.acquire(tools.fresh_chain(1), load_timeout=timeout))
    assert (error.code, error.reason) == (CODE.INVALID_ARGUMENT, "MALFORMED_REQUEST")


@pytest.mark.parametrize("cost", [Duration(nanos=-1), Duration(seconds=10**15)])
def test_an_absurd_cost_of_computing_is_malformed(peer: Any, tools: Any, cost: Duration) -> None:
    chain = tools.fresh_chain(1)
    error = tools.refusal(lambda: peer.acquire(chain, recompute_time_per_block=cost))
    assert (error.code, error.reason) == (CODE.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_a_huge_request_id_is_malformed(peer: Any, tools: Any) -> None:
    error = tools.refusal(lambda: peer.acquire(tools.fresh_chain(1), request_id="r" * 1000))
    assert error.reason == "MALFORMED_REQUEST"


@pytest.mark.parametrize("method", ["LookupPrefix", "AcquirePrefix", "ReserveBlocks"])
@pytest.mark.parametrize("raw", [b"\x0a\x02\xff\xfe", b"\x0a\x7fshort", b"\xff\xff\xff"])
def test_bytes_that_are_no_message_are_malformed(
    service: Any, tools: Any, method: str, raw: bytes
) -> None:
    """Invalid UTF-8 in `session_id`, a field that ends too early, no field at all."""
    path = f"/kvtier.v1.CacheService/{method}"
    if method == "AcquirePrefix":
        stream = service.channel.unary_stream(path)
        error = tools.refusal(lambda: list(stream(raw, timeout=5)))
    else:
        unary = service.channel.unary_unary(path)
        error = tools.refusal(lambda: unary(raw, timeout=5))
    assert (error.code, error.reason) == (CODE.INVALID_ARGUMENT, "MALFORMED_REQUEST")


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 0), (0, 3), (2, 1), (2**30, 2**30)])
def test_a_load_outside_the_lease_is_out_of_range(
    peer: Any, tools: Any, first: int, count: int
) -> None:
    chain = tools.fresh_chain(2)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    error = tools.refusal(lambda: peer.load(lease_id, first, count))
    assert (error.code, error.reason) == (CODE.OUT_OF_RANGE, "INVALID_RANGE")


def test_a_load_without_its_lease_is_refused(peer: Any, tools: Any) -> None:
    error = tools.refusal(lambda: peer.load("no lease", 0, 1))
    assert (error.code, error.reason) == (CODE.NOT_FOUND, "LEASE_UNKNOWN")


def _send(peer: Any, reservation_id: str, *frames: tuple[int, int, bytes]) -> Any:
    messages = [pb.StoreBlocksRequest(session_id=peer.id, reservation_id=reservation_id)]
    messages += [
        pb.StoreBlocksRequest(index=index, offset=offset, data=data)
        for index, offset, data in frames
    ]
    return peer.service.stub.StoreBlocks(iter(messages), timeout=5)


@pytest.mark.parametrize(
    "frame",
    [
        (2, 0, b"other index"),
        (-1, 0, b"negative"),
        (0, 100, b"gap"),
        (0, -4, b"negative"),
        (0, 0, b""),
        (0, 0, b"x" * ((1 << 20) + 1)),
        (0, 2**40, b"far"),
    ],
)
def test_a_frame_that_does_not_fit_is_out_of_range(
    service: Any, open_peer: Any, tools: Any, frame: tuple[int, int, bytes]
) -> None:
    peer = open_peer(service, "stream")
    reserved = peer.reserve(tools.fresh_chain(2))
    error = tools.refusal(lambda: _send(peer, reserved.reservation_id, frame))
    assert (error.code, error.reason) == (CODE.OUT_OF_RANGE, "INVALID_RANGE")


def test_the_last_frame_may_not_pass_the_blocks_end(
    service: Any, open_peer: Any, tools: Any
) -> None:
    peer = open_peer(service, "stream")
    reserved = peer.reserve(tools.fresh_chain(1))
    whole, rest = b"x" * (1 << 20), b"y" * (tools.block_bytes - (1 << 20) + 1)
    frames = ((0, 0, whole), (0, len(whole), rest))
    error = tools.refusal(lambda: _send(peer, reserved.reservation_id, *frames))
    assert error.reason == "INVALID_RANGE"


def test_a_store_without_its_reservation_is_refused(
    service: Any, open_peer: Any, tools: Any
) -> None:
    peer = open_peer(service, "stream")
    error = tools.refusal(lambda: _send(peer, "none", (0, 0, b"data")))
    assert (error.code, error.reason) == (CODE.NOT_FOUND, "RESERVATION_UNKNOWN")


def test_a_block_that_was_not_sent_whole_cannot_be_committed(
    service: Any, open_peer: Any, tools: Any
) -> None:
    peer = open_peer(service, "stream")
    chain = tools.fresh_chain(2)
    reserved = peer.reserve(chain)
    pages = tools.filled_pages(chain)
    assert peer.send(reserved, {0: pages[0]}) == 1
    error = tools.refusal(lambda: peer.commit(reserved, [1, 2]))
    assert (error.code, error.reason) == (CODE.FAILED_PRECONDITION, "RESERVATION_INCOMPLETE")
    checksums = peer.write(reserved, chain, pages)
    assert peer.commit(reserved, checksums) == 2


def test_bytes_that_changed_on_the_wire_are_not_committed(
    service: Any, open_peer: Any, tools: Any
) -> None:
    peer = open_peer(service, "stream")
    chain = tools.fresh_chain(2)
    reserved = peer.reserve(chain)
    checksums = peer.write(reserved, chain)
    error = tools.refusal(lambda: peer.commit(reserved, [checksums[0], checksums[1] ^ 1]))
    assert (error.code, error.reason) == (CODE.DATA_LOSS, "CHECKSUM_MISMATCH")
    assert peer.lookup(chain).present_count == 0


def test_the_limits_on_leases_and_reservations_hold(
    make_service: Any, open_peer: Any, tools: Any
) -> None:
    service = make_service(
        limits={"leases_per_session_max": 1, "reservations_per_session_max": 1, "sessions_max": 1}
    )
    peer = open_peer(service, "shared_memory")
    chain = tools.fresh_chain(1)
    peer.store(chain)
    peer.acquire(chain)
    assert tools.refusal(lambda: peer.acquire(chain)).reason == "TOO_MANY_LEASES"
    peer.reserve(tools.fresh_chain(1))
    error = tools.refusal(lambda: peer.reserve(tools.fresh_chain(1)))
    assert (error.code, error.reason) == (CODE.RESOURCE_EXHAUSTED, "TOO_MANY_RESERVATIONS")
    request = tools.open_request("stream")
    error = tools.refusal(lambda: service.stub.OpenSession(request, timeout=5))
    assert (error.code, error.reason) == (CODE.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS")
