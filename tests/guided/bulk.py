"""A guided fuzzer for the service's end of the bulk lane: python -m tests.guided.bulk [flags]

An input is what a client says after its ticket: raw bytes, frames with ids that are good, and calls
of a session's line. The lane answers or hangs up; then no transfer is under way and every slab is
accounted for.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import atheris

with atheris.instrument_imports(
    include=["cache_service.bulk", "kvtier.bulk", "kvtier.bulk_socket"]
):
    from cache_service.bulk.lane import Lane, LoopDoor
    from kvtier import bulk
    from kvtier.bulk import Frame, Kind

from cache_service.bulk.transfers import BulkPlace
from cache_service.cache import Cache
from cache_service.edge.line_calls import LineCalls
from cache_service.intake import StreamIntake
from cache_service.listener import QuietListener
from cache_service.servicer import CacheServicer
from cache_service.status import STATUS_TABLE
from cache_service.views import CacheLimits, MatchView, Transport
from kvtier.access import CallLimits
from kvtier.calls import Calls
from kvtier.keys import NamespaceId, pack_hashes, payload_checksum
from kvtier.serving import ErrorInterceptor
from kvtier.session_line import LineFrame, Method
from kvtier.session_line import pack as pack_line
from kvtier.v1 import cache_pb2
from storage.host.arena import HostArena
from tests.guided.byte_choices import ByteChoices, chains
from tests.guided.running import fuzz

T = TypeVar("T")
BLOCK_BYTES = 4096
STALL_SECONDS = 2.0


class World:
    """One cache on a loop of its own; connections come one after the other."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.arena = HostArena(64 * BLOCK_BYTES, extent_bytes=16 * BLOCK_BYTES)
        self.cache = self.on_loop(self.started)
        servicer = CacheServicer(self.cache, StreamIntake(), "none")
        self.calls = LineCalls(servicer, ErrorInterceptor(STATUS_TABLE), Calls(CallLimits()))
        self.listener = socket.create_server(("127.0.0.1", 0))

    async def started(self) -> Cache:
        cache = Cache(self.arena, None, CacheLimits(), lambda: self.now, QuietListener())
        cache.bulk.place = BulkPlace("127.0.0.1", 1, False)
        return cache

    def on_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(20)

    async def begun(self) -> tuple[str, bytes, str, str]:
        """A session, its ticket, a lease and a reservation of two blocks each."""
        cache = self.cache
        session_id = cache.open_session(
            NamespaceId(bytes(32)), BLOCK_BYTES, 64, "guided", Transport.BULK
        ).session_id
        ticket = cache.bulk.ticket(session_id, "local")
        held, coming = chains(2), chains(2)
        view = await cache.reserve(session_id, "r", held)
        reservation = cache._parts.reservations.find(session_id, view.reservation_id)
        payloads = [bytes([i]) * BLOCK_BYTES for i in range(2)]
        for slab, payload in zip(view.slabs, payloads, strict=True):
            self.arena.view(slab)[:BLOCK_BYTES] = payload
        sums = [payload_checksum(h, p) for h, p in zip(held, payloads, strict=True)]
        reservation.landed_count = len(sums)  # type: ignore[union-attr]
        await cache.commit(session_id, view.reservation_id, sums, verify=False)
        match, *_ = cache.acquire_resident(session_id, "a", held)
        assert isinstance(match, MatchView)
        reserved = await cache.reserve(session_id, "s", coming)
        return session_id, ticket, match.lease_id, reserved.reservation_id

    async def ended(self, session_id: str) -> None:
        self.cache.close_session(session_id)
        for _ in range(200):
            if not self.cache.bulk.transfer_count:
                break
            await asyncio.sleep(0.005)
        assert self.cache.bulk.transfer_count == 0, "a transfer never ended"
        self.now += 1000  # what was reserved is over, and its slabs have rested
        self.cache.tick()
        self.cache.check_integrity()
        stats = self.cache.stats()
        assert (stats.lease_count, stats.reservation_count) == (0, 0)


def said(choices: ByteChoices, session_id: str, lease_id: str, reservation_id: str) -> bytes:
    words = b""
    for _ in range(12):
        if choices.left <= 0:
            break
        what = choices.randrange(7)
        call = choices.choice([1, 2, choices.getrandbits(8)])
        index, offset = choices.choice([0, 1, choices.getrandbits(32)]), choices.choice([0, 1000])
        if what == 0:
            words += choices.taken(choices.randrange(60))
        elif what == 1:
            lease = bulk.raw_id(lease_id)
            count = choices.choice([1, 2, choices.getrandbits(32)])
            words += bulk.pack(Frame(Kind.LOAD, call, index, 0, 20)) + bulk.pack_load(lease, count)
        elif what == 2:
            words += bulk.pack(Frame(Kind.STORE, call, length=16)) + bulk.raw_id(reservation_id)
        elif what in (3, 4):
            length = choices.choice([BLOCK_BYTES, 1000, 3096])
            words += bulk.pack(Frame(Kind.DATA, call, index, offset, length)) + bytes(length)
        elif what == 5:
            asked = cache_pb2.AcquireResidentRequest(
                session_id=session_id, block_hashes=pack_hashes(chains(1))
            )
            frame = LineFrame(call, Method.ACQUIRE_RESIDENT, asked.SerializeToString())
            words += choices.choice([bulk.pack(Frame(Kind.CALLS)), b""]) + pack_line(frame)
        else:
            words += bulk.pack(
                Frame(choices.choice(list(Kind)), call, index, offset, choices.getrandbits(64))
            )
    return words


WORLD = World()


def one_input(data: bytes) -> None:
    """Raises whatever is wrong."""
    choices = ByteChoices(data)
    session_id, ticket, lease_id, reservation_id = WORLD.on_loop(WORLD.begun)
    client = socket.create_connection(WORLD.listener.getsockname())
    connection, _ = WORLD.listener.accept()
    lane = Lane(
        connection, None, WORLD.cache.bulk, WORLD.calls, LoopDoor(WORLD.loop), STALL_SECONDS
    )
    thread = threading.Thread(target=lane.run)
    with client:
        client.settimeout(20)
        if choices.randrange(8):
            client.sendall(bulk.pack(Frame(Kind.HELLO, length=len(ticket))) + ticket)
        with contextlib.suppress(OSError):
            client.sendall(said(choices, session_id, lease_id, reservation_id))
            client.shutdown(socket.SHUT_WR)
        thread.start()
        with contextlib.suppress(OSError):
            while client.recv(65536):
                pass
        thread.join(20)
        assert not thread.is_alive(), "the lane hangs"

    async def ended() -> None:
        await WORLD.ended(session_id)

    WORLD.on_loop(ended)


if __name__ == "__main__":
    logging.disable()  # each input is refused, and each refusal is a warning
    fuzz(one_input)
