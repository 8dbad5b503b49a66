"""A guided fuzzer for both ends of the arena's socket: python -m tests.guided.arena [flags]

The service's end gets anything in place of a ticket, and anything for calls after a good one; the
worker's end gets any answer, with descriptors that may be no arena. Nobody gets in without a
ticket, nothing that is no arena is mapped, what comes back over a line is frames, and no session
and no descriptor is left.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "cache_service.handover",
        "cache_service.session_line",
        "cache_service.edge.line_calls",
        "kvtier.session_line",
        "worker.arena_handover",
        "worker.transfer",
    ]
):
    from cache_service.edge.line_calls import LineCalls
    from cache_service.handover import ArenaHandover
    from kvtier.session_line import FROM_SERVICE, Frames, LineFrame, pack
    from worker.arena_handover import take_arena
    from worker.transfer import NonsenseError

from cache_service.cache import Cache
from cache_service.errors import SessionUnknownError
from cache_service.intake import StreamIntake
from cache_service.listener import QuietListener
from cache_service.servicer import CacheServicer
from cache_service.status import STATUS_TABLE
from cache_service.views import AttachedView, CacheLimits, Transport
from kvtier.access import CallLimits
from kvtier.calls import Calls
from kvtier.keys import NamespaceId
from kvtier.serving import ErrorInterceptor
from kvtier.v1 import cache_pb2 as pb
from storage.host.arena import HostArena
from tests.guided.byte_choices import ByteChoices
from tests.guided.running import fuzz

BLOCK_BYTES = 4096
ARENA_BYTES = 4 * BLOCK_BYTES
TICKET = bytes(range(32))
WAIT_SECONDS_MAX = 20


class Door:
    """Lets in who shows the ticket, each to a session of its own."""

    def __init__(self) -> None:
        limits = CacheLimits(room_wait_seconds=0.01)
        self.cache = Cache(
            HostArena(8 * BLOCK_BYTES), None, limits, time.monotonic, QuietListener()
        )
        self.inside = 0
        self.latest = ""

    def attach(self, ticket: bytes) -> AttachedView:
        if ticket != TICKET:
            raise SessionUnknownError("no such ticket")
        self.inside += 1
        opened = self.cache.open_session(
            NamespaceId(bytes(32)), BLOCK_BYTES, 64, "guided", Transport.SHARED_MEMORY
        )
        self.latest = opened.session_id
        return self.cache.attach(opened.ticket)

    def close_session(self, session_id: str) -> None:
        self.cache.close_session(session_id)
        self.cache.check_integrity()
        self.inside -= 1


def memory_file(size: int, seals: int) -> int:
    descriptor = os.memfd_create("guided", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class World:
    """A hand-over on a loop of its own, and a socket for the worker's end to connect to."""

    def __init__(self, folder: Path) -> None:
        self.door = Door()
        self.arena = memory_file(ARENA_BYTES, fcntl.F_SEAL_SHRINK)
        self.offered: list[Callable[[], int]] = [
            lambda: memory_file(ARENA_BYTES, fcntl.F_SEAL_SHRINK),
            lambda: memory_file(ARENA_BYTES, 0),
            lambda: memory_file(BLOCK_BYTES // 2, fcntl.F_SEAL_SHRINK),
            lambda: os.open("/dev/null", os.O_RDONLY),
            lambda: os.open(folder, os.O_RDONLY),
        ]
        self.path = folder / "service.sock"
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        servicer = CacheServicer(self.door.cache, StreamIntake(), str(self.path))
        calls = LineCalls(servicer, ErrorInterceptor(STATUS_TABLE), Calls(CallLimits()))
        self.handover = ArenaHandover(self.path, self.arena, self.door, calls)
        asyncio.run_coroutine_threadsafe(self.start(), self.loop).result(WAIT_SECONDS_MAX)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "babbler.sock"))
        self.listener.listen()

    async def start(self) -> None:
        self.handover.start()


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    for _ in range(2000):
        if len(os.listdir("/proc/self/fd")) <= before:
            return
        threading.Event().wait(0.005)
    raise AssertionError("a descriptor was left open")


def visit(world: World, choices: ByteChoices) -> None:
    """The service's end."""
    said = TICKET if choices.randrange(2) else choices.taken(choices.randrange(80))
    got_in = said[:32] == TICKET
    with no_descriptor_left(), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_SECONDS_MAX)
        connection.connect(str(world.path))
        with contextlib.suppress(OSError):
            while said:
                part = 1 + choices.randrange(40)
                connection.sendall(said[:part])
                said = said[part:]
            if not got_in:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            answer, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
            for descriptor in descriptors:
                os.close(descriptor)
            assert bool(descriptors) <= got_in, "the arena was given away"
            assert answer in (b"", b"\x00", b"\x01")
            if got_in:
                talk(connection, world.door.latest, choices)
    for _ in range(2000):
        if not world.door.inside:
            return
        threading.Event().wait(0.005)
    raise AssertionError("a session outlived its connection")


def talk(connection: socket.socket, session_id: str, choices: ByteChoices) -> None:
    """Calls, some of which are none, over a session's line; raises OSError when it is cut."""
    for number in range(choices.randrange(6)):
        connection.sendall(call(number, session_id, choices))
    connection.shutdown(socket.SHUT_WR)
    frames = Frames(FROM_SERVICE)
    while data := connection.recv(4096):
        frames.feed(data)  # raises at what is no frame


def call(number: int, session_id: str, choices: ByteChoices) -> bytes:
    if not choices.randrange(4):
        return choices.taken(choices.randrange(40))
    hashes = b"".join(bytes([choices.randrange(4)] * 32) for _ in range(choices.randrange(4)))
    hashes += choices.taken(choices.randrange(2))
    asked = session_id if choices.randrange(8) else "another"
    messages = [
        pb.AcquireResidentRequest(session_id=asked, block_hashes=hashes),
        pb.ReserveBlocksRequest(session_id=asked, block_hashes=hashes),
        pb.CommitBlocksRequest(session_id=asked, checksums=range(choices.randrange(3))),
    ]
    kind = choices.randrange(5)
    message = messages[choices.randrange(3)].SerializeToString()
    return pack(LineFrame(number, kind, message))


def answered(world: World, choices: ByteChoices) -> None:
    """The worker's end."""
    numbers = [choices.randrange(len(world.offered)) for _ in range(choices.randrange(4))]
    word = choices.taken(choices.randrange(4))

    def babble() -> None:
        connection, _ = world.listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(WAIT_SECONDS_MAX)
            connection.recv(64)
            descriptors = [world.offered[number]() for number in numbers]
            try:
                if word:
                    socket.send_fds(connection, [word], descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    with no_descriptor_left():
        thread = threading.Thread(target=babble)
        thread.start()
        try:
            path = str(world.listener.getsockname())
            arena, connection = take_arena(path, TICKET, ARENA_BYTES, BLOCK_BYTES, 10)
        except (OSError, NonsenseError):
            pass
        else:
            connection.close()
            assert word, "nothing was said"
            assert numbers[:1] == [0], "what is no arena was mapped"
            assert len(arena.slab(ARENA_BYTES - BLOCK_BYTES)) == BLOCK_BYTES
            with contextlib.suppress(NonsenseError):
                arena.slab(choices.getrandbits(64) - (1 << 63))
            del arena
        thread.join(WAIT_SECONDS_MAX)
        assert not thread.is_alive()


FOLDER = tempfile.TemporaryDirectory(prefix="kvg-")
WORLD = World(Path(FOLDER.name))


def one_input(data: bytes) -> None:
    """Raises whatever is wrong."""
    choices = ByteChoices(data)
    (visit if choices.randrange(2) else answered)(WORLD, choices)


if __name__ == "__main__":
    logging.disable()  # each input is refused, and each refusal is a warning
    fuzz(one_input)
