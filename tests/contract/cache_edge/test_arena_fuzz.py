"""The arena's socket under anything: both ends answer with typed errors and keep no descriptor."""

import fcntl
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.v1 import cache_pb2 as pb
from worker.arena_handover import take_arena
from worker.transfer import NonsenseError

BLOCK_BYTES = 4096
ARENA_BYTES = 16 * BLOCK_BYTES
TICKET = bytes(range(32))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def settled(count: Callable[[], int], most: int) -> int:
    """The count once it is down to `most`, or after some seconds."""
    deadline = time.monotonic() + 10
    while count() > most and time.monotonic() < deadline:
        time.sleep(0.02)
    return count()


# -- the service's end -----------------------------------------------------------------------------


def harm(path: str, ticket: bytes, chance: random.Random) -> None:
    """One visitor: wrong, short or long tickets, descriptors of its own, a right one and more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(path)
        said = chance.choice(
            [b"", ticket[:31], chance.randbytes(32), ticket, chance.randbytes(999)]
        )
        try:
            if chance.random() < 0.3:
                with tempfile.TemporaryFile() as file:
                    socket.send_fds(connection, [said or b"x"], [file.fileno()] * 3)
            else:
                for start in range(0, len(said), 7):
                    connection.sendall(said[start : start + 7])
            if chance.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(100):
                    pass
            if chance.random() < 0.5:
                connection.sendall(b"more")
        except OSError:
            return  # it does not have to listen


def test_visitors_of_any_kind_leave_no_session_and_no_descriptor(
    service: Any, tools: Any, open_peer: Any
) -> None:
    chance = random.Random(5)
    peer = open_peer(service, "shared_memory")
    before, sessions = open_descriptors(), service.stats().session_count
    for _ in range(60):
        opened = service.stub.OpenSession(tools.open_request("shared_memory"), timeout=10)
        visitors = [
            threading.Thread(
                target=harm,
                args=(
                    opened.arena.socket_path,
                    opened.arena.ticket,
                    random.Random(chance.random()),
                ),
            )
            for _ in range(3)
        ]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
        service.stub.CloseSession(pb.CloseSessionRequest(session_id=opened.session_id), timeout=10)
    assert settled(open_descriptors, before) <= before
    assert service.stats().session_count == sessions
    chain = tools.fresh_chain(2)
    peer.store(chain)
    assert peer.read(peer.acquire(chain)) == [page.tobytes() for page in tools.filled_pages(chain)]


# -- the client's end ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def liar() -> Iterator[Any]:
    """Listens, and says and hands over what it is told to."""
    with tempfile.TemporaryDirectory(prefix="kvt-") as name:
        path, answer = Path(name) / "s", []
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    said, descriptors = answer[0]
                    connection.recv(32)
                    if descriptors:
                        socket.send_fds(connection, [said or b"\0"], descriptors)
                    elif said:
                        connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path, answer
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def memfd(size: int, sealed: bool) -> int:
    descriptor = os.memfd_create("arena", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if sealed:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


@settings(max_examples=60, deadline=None)
@given(
    said=st.binary(max_size=40),
    memories=st.lists(
        st.tuples(
            st.sampled_from([0, 1, BLOCK_BYTES, ARENA_BYTES, 2 * ARENA_BYTES]), st.booleans()
        ),
        max_size=3,
    ),
    no_memory=st.booleans(),
)
def test_whatever_is_handed_over_is_mapped_whole_or_refused(
    liar: Any, said: bytes, memories: list[tuple[int, bool]], no_memory: bool
) -> None:
    path, answer = liar
    before = open_descriptors()
    pipe = list(os.pipe()) if no_memory else []
    descriptors = [*pipe[:1], *(memfd(*each) for each in memories)]
    answer[:] = [(said, descriptors)]
    good = not no_memory and memories[:1] in (
        [(ARENA_BYTES, True)],
        [(2 * ARENA_BYTES, True)],
    )
    try:
        arena, connection = take_arena(str(path), TICKET, ARENA_BYTES, BLOCK_BYTES, 5)
    except (OSError, NonsenseError):
        assert not good
    else:
        assert good
        assert arena.slab(ARENA_BYTES - BLOCK_BYTES).nbytes == BLOCK_BYTES
        connection.close()
    for descriptor in {*pipe, *descriptors}:
        os.close(descriptor)
    assert settled(open_descriptors, before) <= before
