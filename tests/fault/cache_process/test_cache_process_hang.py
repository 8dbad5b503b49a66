"""A cache that hangs, dies or babbles costs the engine bounded time and never a wrong byte."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from kvtier.blocks import MissReason
from kvtier.breaker import Breaker

GENEROUS_SECONDS = 15.0
"""For what must not hang; nothing here is a measurement."""


def eventually(holds: Any) -> None:
    waiting = threading.Event()
    for _ in range(1000):
        if holds():
            return
        waiting.wait(0.02)
    raise AssertionError("did not come to hold")


def test_a_stopped_service_is_a_deadline_then_nothing_at_all(
    start: Any, connect: Any, payloads: Any
) -> None:
    """After the first timeouts the breaker answers; once the service goes on, hits are back."""
    service = start()
    breaker = Breaker(time.monotonic, failures_max=2, wait_seconds=0.2, wait_seconds_max=0.5)
    client = connect(service.ready(), breaker)
    chain = payloads.chain(1, 4)
    client.store("r", chain, payloads.pages(chain))
    service.signal(signal.SIGSTOP)
    reasons = []
    began = time.monotonic()
    while breaker.admits():
        reasons.append(client.restore("r", chain, payloads.blank(4), 0.5).miss_reason)
    assert time.monotonic() - began < GENEROUS_SECONDS
    assert set(reasons) <= {MissReason.DEADLINE, MissReason.UNAVAILABLE}
    for _ in range(100):
        result = client.restore("r", chain, payloads.blank(4), 60.0)
        assert (result.tiers, result.miss_reason) == ((), MissReason.UNAVAILABLE)
    assert client.store("r", chain, payloads.pages(chain)).stored_count == 0
    assert time.monotonic() - began < GENEROUS_SECONDS
    service.signal(signal.SIGCONT)
    eventually(client.connected)
    assert len(client.restore("r", chain, payloads.blank(4), 10).tiers) == 4


def test_a_killed_service_is_unavailable_and_found_again(
    start: Any, connect: Any, payloads: Any
) -> None:
    service = start()
    breaker = Breaker(time.monotonic, failures_max=2, wait_seconds=0.1, wait_seconds_max=0.3)
    address = service.ready()
    client = connect(address, breaker)
    chain = payloads.chain(1, 4)
    client.store("r", chain, payloads.pages(chain))
    service.signal(signal.SIGKILL)
    service.end()
    for _ in range(5):
        result = client.restore("r", chain, payloads.blank(4), 10)
        assert (result.tiers, result.miss_reason) == ((), MissReason.UNAVAILABLE)
    assert not client.connected()
    start(f"listen={address}").ready()
    eventually(client.connected)
    assert client.store("r", chain, payloads.pages(chain)).refused_count == 0
    assert len(client.restore("r", chain, payloads.blank(4), 10).tiers) == 4


@contextlib.contextmanager
def babbling(answer: bytes) -> Iterator[str]:
    """A server that says `answer` to everybody, then listens on."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        held = []
        listener.settimeout(0.1)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                held.append(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(answer)
        for connection in held:
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        thread.join(10)
        listener.close()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n\r\nhello", bytes(range(256)) * 64], ids=len
)
def test_a_port_where_something_else_answers_is_unavailable(
    connect: Any, payloads: Any, answer: bytes
) -> None:
    with babbling(answer) as address:
        client = connect(address)
        chain = payloads.chain(1, 2)
        began = time.monotonic()
        for _ in range(6):
            assert client.restore("r", chain, payloads.blank(2), 0.3).tiers == ()
        assert client.store("r", chain, payloads.pages(chain)).stored_count == 0
        assert time.monotonic() - began < GENEROUS_SECONDS
        assert not client.connected()


@pytest.mark.parametrize("raw", [b"\xff" * 40, b"", b"\x0a\x01x"], ids=["noise", "empty", "part"])
def test_a_grpc_server_that_answers_nonsense_is_unavailable(
    connect: Any, payloads: Any, raw: bytes
) -> None:
    """Not protobuf, protobuf without a session, a session without limits."""
    from concurrent.futures import ThreadPoolExecutor

    class Nonsense(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: raw)

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=(Nonsense(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        client = connect(f"127.0.0.1:{port}")
        chain = payloads.chain(1, 2)
        for _ in range(4):
            result = client.restore("r", chain, payloads.blank(2), 1.0)
            assert (result.tiers, result.miss_reason) == ((), MissReason.UNAVAILABLE)
        assert client.store("r", chain, payloads.pages(chain)).stored_count == 0
        server.stop(None).wait(10)
