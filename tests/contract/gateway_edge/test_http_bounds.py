"""What a connection may cost before anybody knows whose it is: heads, bodies, requests in a row."""

import asyncio
import json
from typing import Any

import pytest

from gateway import http_protocol
from tests.contract.gateway_edge.conftest import Scripted
from tests.contract.gateway_edge.test_http_face import BODY, good
from tests.contract.gateway_edge.test_workers_that_fail import stuck, until


async def told(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Status and code of the one answer before the connection's end."""
    async with asyncio.timeout(20):
        raw = await reader.read()
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    error = json.loads(body)["error"]
    assert error["message"]
    return int(head.split()[1]), error["code"]


async def send(writer: asyncio.StreamWriter, raw: bytes) -> None:
    """Until the other side has enough of it."""
    writer.write(raw)
    try:
        async with asyncio.timeout(20):
            await writer.drain()
    except ConnectionError:
        pass


def head(size: int) -> bytes:
    start = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: "
    return start + b"y" * (size - len(start) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("size", [100, http_protocol.HEAD_BYTES_MAX])
async def test_a_head_within_its_bound_is_read(scripted: Scripted, size: int) -> None:
    await scripted.start(await scripted.worker(good))
    reader, writer = await asyncio.open_connection(*scripted.address)
    await send(writer, head(size))
    assert b"alive" in await reader.read()
    writer.close()


LARGE = head(http_protocol.HEAD_BYTES_MAX + 1)


@pytest.mark.parametrize(
    "raw",
    [
        LARGE,
        head(200_000),
        head(70_000)[:-2],  # never ends
        b"GET /" + b"a" * 70_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 12_000,
        b"GET / HTTP/1.1\r\n" + b"a" * 70_000,
    ],
)
@pytest.mark.parametrize("piece", [1_000, 1 << 20])
async def test_a_head_beyond_it_is_431_whole_or_in_pieces(
    scripted: Scripted, raw: bytes, piece: int
) -> None:
    await scripted.start(await scripted.worker(good))
    reader, writer = await asyncio.open_connection(*scripted.address)
    for at in range(0, len(raw), piece):
        await send(writer, raw[at : at + piece])
    assert await told(reader) == (431, "head_too_large")
    writer.close()


async def test_a_second_head_is_bounded_as_the_first(scripted: Scripted) -> None:
    await scripted.start(await scripted.worker(good))
    reader, writer = await asyncio.open_connection(*scripted.address)
    for _ in range(3):
        await send(writer, head(60_000).replace(b"close", b"none"))
        await reader.readuntil(b"alive")
        await reader.readuntil(b"}")
    await send(writer, LARGE)
    assert await told(reader) == (431, "head_too_large")
    writer.close()


@pytest.mark.parametrize("before", [0, 1])
async def test_a_head_that_does_not_come_is_not_waited_for(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS_MAX", 0.3)
    await scripted.start(await scripted.worker(good))
    reader, writer = await asyncio.open_connection(*scripted.address)
    for _ in range(before):
        await send(writer, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b'alive"}')
    slow = asyncio.create_task(dribble(writer, b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 1000))
    assert await told(reader) == (408, "head_late")
    slow.cancel()
    writer.close()


async def dribble(writer: asyncio.StreamWriter, raw: bytes) -> None:
    for at in range(len(raw)):
        await send(writer, raw[at : at + 1])
        await asyncio.sleep(0.02)


async def test_who_connects_and_says_nothing_is_let_go(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS_MAX", 0.1)
    await scripted.start(await scripted.worker(good))
    reader, writer = await asyncio.open_connection(*scripted.address)
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


async def test_an_answer_that_takes_longer_than_a_head_may_is_not_cut(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS_MAX", 0.1)

    async def slow(request: Any, context: Any) -> Any:
        async for response in good(request, context):
            await asyncio.sleep(0.1)
            yield response

    client = await scripted.start(await scripted.worker(slow))
    for _ in range(2):
        reply = await client.completions.create(model="demo", prompt="x")
        assert reply.choices[0].text == "a"


def asked(scripted: Scripted, body: bytes, *lines: bytes) -> bytes:
    first = b"POST /v1/chat/completions HTTP/1.1", b"host: x"
    key = b"authorization: Bearer " + scripted.key.encode()
    return b"\r\n".join((*first, key, *lines, b"", body))


async def test_what_follows_a_body_in_pieces_is_bounded(scripted: Scripted) -> None:
    worker = await scripted.worker(good)
    await scripted.start(worker, limits__body_bytes_max=2048)
    _, writer = await asyncio.open_connection(*scripted.address)
    chunk = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    await send(writer, asked(scripted, chunk, b"transfer-encoding: chunked"))
    async with asyncio.timeout(20):
        while not writer.is_closing():
            await send(writer, b"x: yyyyyyyyyy\r\n" * 1000)
            await asyncio.sleep(0)
    assert not worker.requests
    writer.close()


async def test_a_trailer_is_no_header(scripted: Scripted) -> None:
    worker = await scripted.worker(good)
    await scripted.start(worker)
    reader, writer = await asyncio.open_connection(*scripted.address)
    chunk = b"%x\r\n%s\r\n0\r\nx-client-request-id: late\r\n\r\n" % (len(BODY), BODY)
    lines = b"transfer-encoding: chunked", b"connection: close"
    await send(writer, asked(scripted, chunk, *lines))
    async with asyncio.timeout(20):
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
    assert worker.requests[0].client_request_id == ""
    writer.close()


async def test_so_many_requests_in_a_row_wait_and_no_more(scripted: Scripted) -> None:
    worker = await scripted.worker(stuck)
    await scripted.start(worker, heartbeat_seconds=0.05)
    reader, writer = await asyncio.open_connection(*scripted.address)
    body = BODY[:-1] + b',"stream":true}'
    one = asked(scripted, body, b"content-length: %d" % len(body))
    await send(writer, one)
    await reader.readuntil(b"\r\n\r\n")
    for _ in range(50):
        await send(writer, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
    await until(lambda: worker.cancelled)
    writer.close()


async def test_who_asks_for_more_and_leaves_ends_what_is_answered_too(scripted: Scripted) -> None:
    worker = await scripted.worker(stuck)
    await scripted.start(worker)
    reader, writer = await asyncio.open_connection(*scripted.address)
    body = BODY[:-1] + b',"stream":true}'
    one = asked(scripted, body, b"content-length: %d" % len(body))
    await send(writer, one)
    await reader.readuntil(b"\r\n\r\n")
    await send(writer, one)
    await asyncio.sleep(0.1)
    writer.close()
    await until(lambda: worker.cancelled)
    assert len(worker.requests) == 1
