"""The worker's client keeps CachePort's promises against a real service: on every transport, into
and out of every kind of pages."""

import gc
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from kvtier.blocks import MissReason, Tier
from kvtier.breaker import Breaker
from kvtier.keys import NamespaceId
from kvtier.v1 import cache_pb2 as pb
from worker import cache_link
from worker.arena_handover import take_arena
from worker.cache_port import StoreResult
from worker.cache_session import open_session
from worker.registered_memory import RegisteredMemory
from worker.transfer import ArenaMap

BLOCK_BYTES = 1_200_000
"""About what blocks are of here."""

WAYS = [
    ("shared_memory", "in place"),
    ("shared_memory", "staged"),
    ("shared_memory", "registered"),
    ("bulk", "in place"),
    ("bulk", "staged"),
    ("stream", "in place"),
    ("stream", "staged"),
]


@pytest.fixture(params=WAYS, ids=" ".join)
def client(
    request: pytest.FixtureRequest, service: Any, make_client: Any, monkeypatch: pytest.MonkeyPatch
) -> Any:
    transport, kind = request.param
    if kind != "in place":
        # So that there are several parts, and fewer are under way than there are.
        monkeypatch.setattr("worker.cache_restore.PART_BYTES", 2 * BLOCK_BYTES)
        monkeypatch.setattr("worker.device_pages.IN_FLIGHT_BYTES", BLOCK_BYTES)
    return make_client(service.address, transport, kind=kind)


def test_what_was_stored_is_restored_byte_for_byte(client: Any, tools: Any) -> None:
    chain = tools.fresh_chain(5)
    pages, restored = tools.filled_pages(chain), tools.empty_pages(5)
    assert client.store("r", chain, pages) == StoreResult(5, 0, 0)
    result = client.restore("r", chain, restored, 10)
    assert result.tiers == (Tier.HOST,) * 5
    assert result.miss_reason is MissReason.NONE
    assert all(np.array_equal(a, b) for a, b in zip(pages, restored, strict=True))
    assert client.connected()


def test_a_restore_may_start_inside_a_chain(client: Any, tools: Any) -> None:
    chain = tools.fresh_chain(4)
    client.store("r", chain, tools.filled_pages(chain))
    restored = tools.empty_pages(2)
    assert len(client.restore("r", chain[2:], restored, 10).tiers) == 2
    assert np.array_equal(restored[0], tools.filled_pages(chain[2:3])[0])


def test_a_restore_ends_where_the_cache_does(client: Any, tools: Any) -> None:
    chain = tools.fresh_chain(4)
    client.store("r", chain[:2], tools.filled_pages(chain[:2]))
    result = client.restore("r", chain, tools.empty_pages(4), 10)
    assert (len(result.tiers), result.miss_reason) == (2, MissReason.NEVER_STORED)


def test_a_second_store_copies_only_what_is_missing(client: Any, tools: Any) -> None:
    chain = tools.fresh_chain(4)
    pages = tools.filled_pages(chain)
    client.store("r", chain[:3], pages[:3])
    assert client.store("r", chain, pages) == StoreResult(1, 3, 0)


def test_what_does_not_fit_is_refused_and_the_rest_is_kept(
    make_service: Any, make_client: Any, tools: Any
) -> None:
    service = make_service(host={"capacity_bytes": "8MiB"}, ssd={"enabled": False})
    client = make_client(service.address, block_bytes=1 << 20)
    chain = tools.fresh_chain(12)
    result = client.store("r", chain, tools.filled_pages(chain, 1 << 20))
    assert result.stored_count == 8
    assert result.refused_count == 4
    assert len(client.restore("r", chain, tools.empty_pages(12, 1 << 20), 10).tiers) == 8


def test_nothing_is_held_after_a_restore_and_a_store(client: Any, service: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    client.store("r", chain, tools.filled_pages(chain))
    client.restore("r", chain, tools.empty_pages(2), 10)
    service.until(lambda stats: stats.lease_count == 0 and stats.reservation_count == 0)


def test_chains_longer_than_a_call_are_restored_in_several(
    make_service: Any, make_client: Any, tools: Any
) -> None:
    service = make_service(limits={"blocks_per_call_max": 3})
    client = make_client(service.address)
    chain = tools.fresh_chain(7)
    pages, restored = tools.filled_pages(chain), tools.empty_pages(7)
    assert client.store("r", chain, pages) == StoreResult(3, 0, 4)
    result = client.restore("r", chain, restored, 10)
    assert (len(result.tiers), result.miss_reason) == (3, MissReason.NEVER_STORED)
    result = client.restore("r", chain[:3], restored, 10)
    assert (len(result.tiers), result.miss_reason) == (3, MissReason.NONE)


def test_an_empty_chain_is_nothing_and_no_miss(client: Any) -> None:
    result = client.restore("r", [], [], 1)
    assert (result.tiers, result.miss_reason) == ((), MissReason.NONE)
    assert client.store("r", [], []) == StoreResult(0, 0, 0)


def test_pages_that_do_not_fit_are_the_callers_mistake(client: Any, tools: Any) -> None:
    chain = tools.fresh_chain(2)
    with pytest.raises(ValueError):
        client.restore("r", chain, tools.empty_pages(1), 1)
    with pytest.raises(ValueError):
        client.store("r", chain, tools.empty_pages(2, 4096))


def test_no_time_is_no_restore(client: Any, tools: Any) -> None:
    chain = tools.fresh_chain(1)
    client.store("r", chain, tools.filled_pages(chain))
    result = client.restore("r", chain, tools.empty_pages(1), 0.0)
    assert result.tiers == ()
    assert result.miss_reason in (MissReason.DEADLINE, MissReason.UNAVAILABLE)


@pytest.mark.parametrize("transport", ["shared_memory", "bulk", "stream"])
def test_a_restarted_service_is_found_again_within_one_call(
    make_service: Any, make_client: Any, tools: Any, transport: str
) -> None:
    """The session is gone with its service; the blocks come from the SSD."""
    service = make_service()
    client = make_client(service.address, transport)
    chain = tools.fresh_chain(3)
    pages, restored = tools.filled_pages(chain), tools.empty_pages(3)
    assert client.store("r", chain, pages).stored_count == 3
    service.stop()
    make_service(service.settings.data_directory, listen=service.address)
    result = client.restore("r", chain, restored, 10)
    assert result.tiers == (Tier.SSD,) * 3
    assert all(np.array_equal(a, b) for a, b in zip(pages, restored, strict=True))


@pytest.mark.parametrize("transport", ["shared_memory", "bulk", "stream"])
def test_a_service_that_was_away_while_nobody_called_is_found_by_the_next_call(
    make_service: Any, make_client: Any, tools: Any, transport: str
) -> None:
    """The keeper saw it away; that alone must not keep a call from asking."""
    service = make_service(limits={"session_ttl_seconds": 3})
    breaker = Breaker(time.monotonic, failures_max=1, wait_seconds=600, wait_seconds_max=600)
    client = make_client(service.address, transport, breaker=breaker)
    chain = tools.fresh_chain(3)
    assert client.store("r", chain, tools.filled_pages(chain)).stored_count == 3
    service.stop()
    before, waiting = client.counts().get("cache_failures", 0), threading.Event()
    while client.counts().get("cache_failures", 0) == before:
        waiting.wait(0.05)
    make_service(service.settings.data_directory, listen=service.address)
    assert len(client.restore("r", chain, tools.empty_pages(3), 10).tiers) == 3


def test_an_idle_client_keeps_its_session(make_service: Any, make_client: Any, tools: Any) -> None:
    service = make_service(
        limits={"session_ttl_seconds": 0.6, "lease_ttl_seconds": 5, "reservation_ttl_seconds": 5}
    )
    client = make_client(service.address, "stream")
    service.until(lambda stats: stats.session_count == 1)
    threading.Event().wait(1.5)
    assert service.stats().session_count == 1
    assert client.counts()["sessions_opened"] == 1


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_arena_that_cannot_be_touched_costs_no_keeper_and_no_session(
    make_service: Any, make_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(ArenaMap, "prefault", breaks)
    service = make_service(
        limits={"session_ttl_seconds": 0.6, "lease_ttl_seconds": 5, "reservation_ttl_seconds": 5}
    )
    client = make_client(service.address, "shared_memory")
    service.until(lambda stats: stats.session_count == 1)
    threading.Event().wait(1.5)
    assert service.stats().session_count == 1
    assert client.counts()["sessions_opened"] == 1
    client.close()
    service.until(lambda stats: stats.session_count == 0)
    assert not [each for each in threading.enumerate() if each.name == "cache-keeper"]


def test_an_arena_is_registered_for_as_long_as_a_client_has_it(
    make_service: Any, make_client: Any, tools: Any
) -> None:
    service = make_service()
    known: dict[int, int] = {}

    def register(address: int, size: int) -> str:
        known[address] = size
        return "" if len(known) < 3 else "refused"

    size = service.settings.host.capacity_bytes
    memory = RegisteredMemory(register, known.__delitem__, size // 4)
    client = make_client(service.address, "shared_memory", registered=memory)
    waiting = threading.Event()
    while not client.counts().get("arenas_not_registered"):
        waiting.wait(0.02)
    assert memory.registered_bytes == 2 * (size // 4)
    known.popitem()  # What was refused.
    client.close()
    del client
    gc.collect()
    assert not known


def test_a_session_that_a_probe_opens_beside_the_close_is_closed_too(
    make_service: Any, make_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, go_on = threading.Event(), threading.Event()

    def opens_slowly(*terms: Any) -> Any:
        session = open_session(*terms)
        opened.set()
        assert go_on.wait(20)
        return session

    monkeypatch.setattr(cache_link, "open_session", opens_slowly)
    monkeypatch.setattr(cache_link, "RENEW_SECONDS_MAX", -1.9)  # how long a close waits: 0.1 s
    service = make_service()
    breaker = Breaker(time.monotonic, failures_max=1, wait_seconds=0.05)
    breaker.failed()
    client = make_client(service.address, "shared_memory", breaker=breaker)
    assert opened.wait(20)
    client.close()
    assert service.stats().session_count == 1
    go_on.set()
    service.until(lambda stats: stats.session_count == 0)


@pytest.mark.parametrize("kind", ["in place", "staged", "registered"])
def test_corrupt_bytes_cut_the_prefix_and_are_reported(
    make_service: Any, make_client: Any, tools: Any, kind: str
) -> None:
    """A bit of the arena flips after the commit; the restore ends before that block."""
    service = make_service(ssd={"enabled": False})
    client = make_client(service.address, "shared_memory", kind=kind)
    chain = tools.fresh_chain(4)
    client.store("r", chain, tools.filled_pages(chain))
    opened = service.stub.OpenSession(tools.open_request("shared_memory"), timeout=5)
    arena, connection = take_arena(
        opened.arena.socket_path,
        opened.arena.ticket,
        opened.arena.arena_bytes,
        tools.block_bytes,
        5,
    )
    events = list(
        service.stub.AcquirePrefix(
            pb.AcquirePrefixRequest(session_id=opened.session_id, block_hashes=b"".join(chain)),
            timeout=5,
        )
    )
    offsets = [o for event in events for o in event.ready.slab_offsets]
    arena.slab(offsets[2])[700_000] ^= 1
    connection.close()
    result = client.restore("r", chain, tools.empty_pages(4), 10)
    assert (len(result.tiers), result.miss_reason) == (2, MissReason.CORRUPT)
    assert client.counts()["corrupt_blocks"] == 1
    service.until(lambda stats: stats.tiers[0].block_count == 2)
    result = client.restore("r", chain, tools.empty_pages(4), 10)
    assert len(result.tiers) == 2


def test_many_threads_share_one_client(client: Any, tools: Any) -> None:
    chains = [tools.fresh_chain(3) for _ in range(6)]
    good: list[bool] = []

    def work(chain: Any) -> None:
        pages, restored = tools.filled_pages(chain), tools.empty_pages(3)
        client.store("r", chain, pages)
        result = client.restore("r", chain, restored, 20)
        good.append(
            len(result.tiers) == 3
            and all(np.array_equal(a, b) for a, b in zip(pages, restored, strict=True))
        )

    threads = [threading.Thread(target=work, args=(chain,)) for chain in chains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert good == [True] * 6


def test_auto_takes_shared_memory_here_and_the_stream_where_there_is_no_socket(
    make_service: Any, make_client: Any, tools: Any
) -> None:
    service = make_service()
    near = make_client(service.address, "auto")
    chain = tools.fresh_chain(2)
    assert near.store("r", chain, tools.filled_pages(chain)).stored_count == 2
    assert service.stats().session_count == 1
    os.unlink(service.settings.arena_socket_path)
    far = make_client(service.address, "auto")
    assert len(far.restore("r", chain, tools.empty_pages(2), 10).tiers) == 2
    assert service.stats().session_count == 2


def test_a_closed_client_finds_the_cache_unavailable(client: Any, tools: Any) -> None:
    client.close()
    client.close()
    chain = tools.fresh_chain(1)
    result = client.restore("r", chain, tools.empty_pages(1), 5)
    assert (result.tiers, result.miss_reason) == ((), MissReason.UNAVAILABLE)
    assert client.store("r", chain, tools.filled_pages(chain)) == StoreResult(0, 0, 1)
    assert not client.connected()


def test_terms_the_service_refuses_are_a_miss(
    service: Any, make_client: Any, tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(service.address, namespace_id=NamespaceId(b"odd"))
    chain = tools.fresh_chain(1)
    with caplog.at_level(logging.WARNING):
        result = client.restore("r", chain, tools.empty_pages(1), 5)
    assert (result.tiers, result.miss_reason) == ((), MissReason.UNAVAILABLE)
    assert not client.connected()
    assert "INVALID_NAMESPACE" in {getattr(record, "reason", "") for record in caplog.records} | {
        "INVALID_NAMESPACE" if client.counts()["cache_failures"] else ""
    }


@pytest.fixture
def arena_socket(service: Any) -> str:
    return str(service.settings.arena_socket_path)


@pytest.fixture
def connection(arena_socket: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.settimeout(10)
        opened.connect(arena_socket)
        yield opened


def test_the_arena_socket_is_for_its_owner_only(arena_socket: str) -> None:
    assert stat.S_IMODE(os.stat(arena_socket).st_mode) == 0o600


def test_a_wrong_ticket_gets_no_arena(connection: socket.socket) -> None:
    connection.sendall(bytes(32))
    data, descriptors, _, _ = socket.recv_fds(connection, 10, 1)
    assert (data, descriptors) == (b"\x01", [])
    assert connection.recv(1) == b""


def test_a_ticket_works_once(
    service: Any, open_peer: Callable[..., Any], connection: socket.socket
) -> None:
    peer = open_peer(service, "shared_memory")
    connection.sendall(peer.opened.arena.ticket)
    data, descriptors, _, _ = socket.recv_fds(connection, 10, 1)
    assert (data, descriptors) == (b"\x01", [])


def test_a_client_that_says_nothing_or_too_little_is_sent_away(
    connection: socket.socket,
) -> None:
    connection.sendall(b"only a part")
    assert connection.recv(1) == b""
