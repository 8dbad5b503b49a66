"""Every RPC keeps what its comment in cache.proto promises, on both transports."""

from typing import Any

import grpc
import pytest

from kvtier.blocks import MissReason, Tier
from kvtier.keys import pack_hashes
from kvtier.v1 import cache_pb2 as pb

CODE = grpc.StatusCode


def kinds(events: list[pb.AcquirePrefixResponse]) -> list[str]:
    """What the messages of an acquire say, one after the other."""
    names = ("match", "ready", "end")
    return [name for event in events for name in names if event.HasField(name)]


def test_a_stored_chain_is_acquired_with_the_same_bytes(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(3)
    peer.store(chain)
    events = peer.acquire(chain)
    assert kinds(events)[0] == "match"
    assert kinds(events)[-1] == "end"
    match, end = events[0].match, events[-1].end
    assert match.matched_count == end.ready_count == 3
    assert match.tiers == bytes([Tier.HOST] * 3)
    assert end.miss_reason == MissReason.NONE
    assert match.expire_time.seconds > 0
    assert peer.read(events) == [page.tobytes() for page in tools.filled_pages(chain)]
    peer.release(match.lease_id)


def test_slab_offsets_are_named_to_shared_memory_only(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    reserved = peer.store(chain)
    ready = next(e.ready for e in peer.acquire(chain) if e.HasField("ready"))
    named = 2 if peer.arena is not None else 0
    assert len(reserved.slab_offsets) == len(ready.slab_offsets) == named


def test_what_needs_no_waiting_comes_in_one_message(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(3)
    peer.store(chain[:2])
    for asked, ready_count in ((chain[:2], 2), (chain, 2), (tools.fresh_chain(1), 0)):
        (message,) = peer.acquire(asked)
        assert message.match.matched_count == message.end.ready_count == ready_count
        assert len(message.ready.checksums) == ready_count


def test_what_is_all_in_memory_is_acquired_in_one_answer(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(3)
    peer.store(chain[:2])
    answer = peer.acquire_resident(chain)
    assert (answer.match.matched_count, answer.end.ready_count) == (2, 2)
    assert answer.end.miss_reason == MissReason.NEVER_STORED
    assert peer.read([answer]) == [page.tobytes() for page in tools.filled_pages(chain[:2])]
    nothing = peer.acquire_resident(tools.fresh_chain(1))
    assert (nothing.match.lease_id, nothing.end.ready_count) == ("", 0)
    assert nothing.end.miss_reason == MissReason.NEVER_STORED


def test_leases_go_back_along_with_the_next_call(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    peer.store(chain)

    def leases() -> int:
        return int(peer.service.stats().lease_count)

    first = peer.acquire_resident(chain).match.lease_id
    assert leases() == 1
    second = peer.acquire_resident(chain, returned_lease_ids=[first, "unknown"]).match.lease_id
    assert leases() == 1
    third = peer.acquire(chain, returned_lease_ids=[second])[0].match.lease_id
    assert leases() == 1
    request = pb.ReserveBlocksRequest(
        session_id=peer.id, block_hashes=pack_hashes(chain), returned_lease_ids=[third]
    )
    peer.service.stub.ReserveBlocks(request, timeout=10)
    assert leases() == 0
    last = [peer.acquire_resident(chain).match.lease_id for _ in range(2)]
    peer.service.stub.ReleaseLease(
        pb.ReleaseLeaseRequest(session_id=peer.id, returned_lease_ids=last), timeout=10
    )
    assert leases() == 0


def test_an_acquire_of_nothing_makes_no_lease(peer: Any, tools: Any) -> None:
    before = peer.service.stats().lease_count
    events = peer.acquire(tools.fresh_chain(2))
    assert kinds(events) == ["match", "end"]
    assert events[0].match.lease_id == ""
    assert events[-1].end.miss_reason == MissReason.NEVER_STORED
    assert peer.service.stats().lease_count == before


def test_a_chain_that_ends_early_says_where_and_why(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(3)
    peer.store(chain[:2])
    looked = peer.lookup(chain)
    assert (looked.present_count, looked.tiers) == (2, bytes([Tier.HOST] * 2))
    assert looked.miss_reason == MissReason.NEVER_STORED
    assert peer.acquire(chain)[-1].end.ready_count == 2


def test_reserved_blocks_are_invisible_until_committed(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    reserved = peer.reserve(chain)
    assert list(reserved.missing_indexes) == [0, 1]
    checksums = peer.write(reserved, chain)
    assert peer.lookup(chain).present_count == 0
    assert peer.commit(reserved, checksums) == 2
    assert peer.lookup(chain).present_count == 2


def test_only_missing_blocks_are_reserved(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(4)
    peer.store(chain[:2])
    reserved = peer.reserve(chain)
    assert list(reserved.missing_indexes) == [2, 3]
    assert peer.reserve(chain).reservation_id == ""


def test_with_nothing_missing_no_reservation_is_made(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    peer.store(chain)
    reserved = peer.reserve(chain)
    assert (reserved.reservation_id, list(reserved.missing_indexes)) == ("", [])


def test_a_repeated_reserve_with_a_request_id_gets_the_first_answer(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    first = peer.reserve(chain, "request-a")
    again = peer.reserve(chain, "request-a")
    assert again.reservation_id == first.reservation_id
    assert again.slab_offsets == first.slab_offsets


def test_a_second_commit_gets_the_first_answer(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    reserved = peer.reserve(chain)
    checksums = peer.write(reserved, chain)
    assert peer.commit(reserved, checksums) == 2
    assert peer.commit(reserved, checksums) == 2


def test_a_commit_with_another_number_of_checksums_is_refused(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    reserved = peer.reserve(chain)
    checksums = peer.write(reserved, chain)
    error = tools.refusal(lambda: peer.commit(reserved, checksums[:1]))
    assert (error.code, error.reason) == (CODE.INVALID_ARGUMENT, "CHECKSUM_COUNT_MISMATCH")
    assert peer.lookup(chain).present_count == 0


def test_an_aborted_reservation_leaves_nothing_and_aborts_again(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    reserved = peer.reserve(chain)
    request = pb.AbortReservationRequest(session_id=peer.id, reservation_id=reserved.reservation_id)
    for _ in range(2):
        peer.service.stub.AbortReservation(request, timeout=5)
    error = tools.refusal(lambda: peer.commit(reserved, [1]))
    assert (error.code, error.reason) == (CODE.NOT_FOUND, "RESERVATION_UNKNOWN")
    assert list(peer.reserve(chain).missing_indexes) == [0]


def test_a_release_may_be_repeated(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    before = peer.service.stats().lease_count
    peer.release(lease_id)
    peer.release(lease_id)
    assert peer.service.stats().lease_count == before - 1


def test_renewing_extends_what_lives_and_is_silent_about_the_rest(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    reservation_id = peer.reserve(tools.fresh_chain(1)).reservation_id
    renewed = peer.service.stub.RenewLeases(
        pb.RenewLeasesRequest(
            session_id=peer.id, lease_ids=[lease_id, "gone"], reservation_ids=[reservation_id]
        ),
        timeout=5,
    )
    told = {renewal.id: renewal.HasField("expire_time") for renewal in renewed.renewals}
    assert told == {lease_id: True, "gone": False, reservation_id: True}


def test_a_block_reported_corrupt_that_is_not_stays(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    peer.store(chain)
    lease_id = peer.acquire(chain)[0].match.lease_id
    peer.release(lease_id, corrupt=pack_hashes(chain[1:]))
    assert peer.acquire(chain)[-1].end.ready_count == 2


def test_closing_a_session_frees_what_it_holds_and_may_be_repeated(peer: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    peer.store(chain)
    before = peer.service.stats()
    peer.acquire(chain)
    peer.reserve(tools.fresh_chain(1))
    for _ in range(2):
        peer.service.stub.CloseSession(pb.CloseSessionRequest(session_id=peer.id), timeout=5)
    after = peer.service.stats()
    assert after.lease_count == before.lease_count
    assert after.reservation_count == before.reservation_count
    assert after.session_count == before.session_count - 1


def test_stats_count_what_was_done(peer: Any, tools: Any) -> None:
    before = peer.service.stats()
    peer.store(tools.fresh_chain(2))
    after = peer.service.stats()
    assert after.service_instance_id == peer.opened.service_instance_id
    assert after.counters["blocks_committed"] == before.counters["blocks_committed"] + 2
    host = after.tiers[0]
    assert host.tier == Tier.HOST
    assert 0 < host.payload_bytes <= host.used_bytes <= host.capacity_bytes


@pytest.mark.parametrize("call", ["lookup", "acquire", "reserve"])
def test_a_session_nobody_opened_is_unknown(peer: Any, tools: Any, call: str) -> None:
    peer.opened.session_id = "nobody"
    error = tools.refusal(lambda: getattr(peer, call)(tools.fresh_chain(1)))
    assert (error.code, error.reason) == (CODE.NOT_FOUND, "SESSION_UNKNOWN")


def test_every_rpc_with_a_session_says_when_it_is_unknown(service: Any, tools: Any) -> None:
    stub = service.stub
    calls = [
        lambda: stub.RenewLeases(pb.RenewLeasesRequest(session_id="x"), timeout=5),
        lambda: stub.ReleaseLease(pb.ReleaseLeaseRequest(session_id="x"), timeout=5),
        lambda: stub.CommitBlocks(pb.CommitBlocksRequest(session_id="x"), timeout=5),
        lambda: stub.AbortReservation(pb.AbortReservationRequest(session_id="x"), timeout=5),
        lambda: list(
            stub.LoadBlocks(
                pb.LoadBlocksRequest(session_id="x", first_index=0, block_count=1), timeout=5
            )
        ),
        lambda: stub.StoreBlocks(iter([pb.StoreBlocksRequest(session_id="x")]), timeout=5),
    ]
    for call in calls:
        error = tools.refusal(call)
        assert (error.code, error.reason) == (CODE.NOT_FOUND, "SESSION_UNKNOWN")
